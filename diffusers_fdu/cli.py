"""Command line: `diffusers-fdu demo`, `diffusers-fdu unlearn`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging as transformers_logging

app = typer.Typer(
    help="Make a text-to-image model forget a concept, as a standard LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEMO_EXAMPLES = """
Examples:

  diffusers-fdu demo

  diffusers-fdu demo --target blob --anchor noto --f hellinger --output-dir runs/blob
"""

UNLEARN_EXAMPLES = """
Examples:

  diffusers-fdu unlearn --model emoji --target dog --anchor cat --f kl --output-dir runs/dog

  diffusers-fdu unlearn --model stable-diffusion-v1-5/stable-diffusion-v1-5
  --target Snoopy --anchor dog --output-dir runs/snoopy --device cuda --dtype bfloat16
"""


@app.command(epilog=DEMO_EXAMPLES)
def demo(
    target: Annotated[str, typer.Option(help="Concept or style to forget.")] = "dog",
    anchor: Annotated[str, typer.Option(help="What takes its place.")] = "cat",
    f: Annotated[str, typer.Option("--f", help="Divergence.")] = "kl",
    output_dir: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of prompts, noise and weights.")] = 0,
) -> None:
    """Unlearn on the embedded emoji model, measure it and draw before and after."""
    from .demo import run_demo

    summary = run_demo(target, anchor, f, output_dir, seed=seed)
    before, after = summary["before"], summary["after"]
    typer.echo(f"\n{target} -> {anchor}, f = {f}, {summary['steps']} steps")
    typer.echo(f"{'':34}before   after")
    labels = {
        "ua": "UA   target no longer drawn",
        "ira": "IRA  the others of its kind",
        "cra": "CRA  the other domain",
    }
    for key, label in labels.items():
        typer.echo(f"{label:34}{before[key]:6.1%}  {after[key]:6.1%}")
    seconds = summary["seconds"]
    typer.echo(f"recording {seconds['record']} s, training {seconds['train']} s")
    typer.echo(f"written to {output_dir}: before_after.png, summary.json, the LoRA, recipe.json")


@app.command(epilog=UNLEARN_EXAMPLES)
def unlearn(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a pipeline, or `emoji`.")],
    target: Annotated[str, typer.Option(help="What to forget.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the LoRA.")],
    anchor: Annotated[
        str | None, typer.Option(help="What takes its place; none: the empty prompt.")
    ] = None,
    f: Annotated[str, typer.Option("--f", help="Divergence.")] = "hellinger",
    kind: Annotated[str, typer.Option(help="object or style.")] = "object",
    retain: Annotated[
        list[str] | None, typer.Option(help="A prompt that must stay; may be repeated.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Of the LoRA.")] = 8,
    steps: Annotated[int, typer.Option(help="Most training steps.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Rows of each role in a step.")] = 16,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; none: by the layers' width.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Of the recorded runs; none: the pipeline's own.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the denoiser.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help="adamw or adamw_8bit.")] = "adamw",
    seed: Annotated[int, typer.Option(help="Of prompts, noise and weights.")] = 0,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; none: cuda if there.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Unlearn a concept and write a LoRA that `pipe.load_lora_weights` reads."""
    from .concepts import Concept
    from .config import settings
    from .divergences import divergence
    from .unlearner import FDUnlearner, writable_folder

    # What can be refused at once is refused before a model is loaded, the rest before training.
    concept = Concept(target, anchor, kind=kind)  # type: ignore[arg-type]
    divergence(f)
    options: dict[str, Any] = {
        "rank": rank,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": "auto" if learning_rate is None else learning_rate,
        "retain": retain or None,
        "seed": seed,
        "compile": compile,
        "gradient_checkpointing": gradient_checkpointing,
        "optimizer": optimizer,
    }
    settings(options)
    device = _checked_device(device, dtype)
    kwargs = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    pipe = _load_pipeline(model, device, dtype)
    if not hasattr(pipe, "save_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} has no LoRA loader in diffusers")
    unlearner = FDUnlearner(pipe, kwargs, **options)
    writable_folder(output_dir)
    unlearner.unlearn(concept, f=f)
    unlearner.save(output_dir)
    first, last = unlearner.history[0], unlearner.history[-1]
    typer.echo(
        f"{len(unlearner.history)} steps, divergence {first.divergence:.4g} -> "
        f"{last.divergence:.4g}; load it with pipe.load_lora_weights({str(output_dir)!r})"
    )


def _checked_device(device: str | None, dtype: str) -> str:
    import torch

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}: choose float32, bfloat16 or float16")
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}") from error
    return device


def _load_pipeline(model: str, device: str, dtype: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from .emoji import load_emoji_pipeline

    torch_dtype = getattr(torch, dtype)
    if model == "emoji":
        pipe: Any = load_emoji_pipeline(torch_dtype=torch_dtype)
        return pipe.to(device)
    try:
        return DiffusionPipeline.from_pretrained(model, torch_dtype=torch_dtype).to(device)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot load {model!r}: {reason} (pass a folder, a Hub id, or `emoji`)"
        ) from error


def main() -> None:
    """Entry point: errors that a user can fix are one line, and the exit code is 1."""
    # Without torchvision, transformers warns about image processors that nothing here uses.
    transformers_logging.set_verbosity_error()
    try:
        app()
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"error: {message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
