"""Pictures for a model card: the same prompt and noise without the adapter and with it."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..adapters import lora as adapters
from ..adapters.contents import PICTURES
from ..adapters.summary import mapping
from ..data.templates import fill, without
from ..pipelines.call_signature import OWN
from ..pipelines.recorder import untouched
from ..pipelines.tokenizers import vocabulary
from . import facts
from .markup import cleaned

SIDE = 512  # pixels of a half at most
GAP = 8
EACH = 2  # pictures of targets, and as many of others
TEMPLATES = {
    "object": ("a {}", "a photo of a {}"),
    "style": ("a picture in {} style", "a drawing of a house in {} style"),
    "prompt": ("{}",),
}
FALLBACK = (
    "tree",
    "house",
    "bicycle",
    "mountain",
    "cup",
    "bridge",
)  # others, where no tokenizer has words


class Shown(NamedTuple):
    """A prompt to draw, and the seed of its noise."""

    prompt: str
    seed: int


def draw_pictures(
    pipe: Any,
    component: str,
    adapter_name: str,
    recipe: Mapping[str, Any],
    pipeline_kwargs: Mapping[str, Any],
    folder: Path,
) -> list[Path]:
    """Draw before and after, of two prompts with the targets and two without.

    Args:
        pipe: with the adapter on it; left as it is.
        component: the denoiser that the adapter is on.
        adapter_name: its name.
        recipe: what trained it.
        pipeline_kwargs: of the recorded runs; without num_inference_steps the pipeline's own.
        folder: gets `images/0.png` and so on.

    Returns:
        The files; none, and a warning, where the pipeline gives no pictures.
    """
    reason = _obstacle(pipe, getattr(pipe, component))
    if reason is not None:
        warnings.warn(f"no pictures for the model card: {reason}", UserWarning, stacklevel=3)
        return []
    wanted = [Shown(prompt, i) for i, prompt in enumerate(prompts(pipe, recipe))]
    kwargs = {name: value for name, value in pipeline_kwargs.items() if name not in OWN}
    halves = []
    with _alone(pipe, component, adapter_name, mapping(recipe.get("active_adapters"))):
        for strength in (0.0, 1.0):
            with adapters.scaled(getattr(pipe, component), adapter_name, strength):
                halves.append([_draw(pipe, shown, kwargs) for shown in wanted])
    (folder / PICTURES).mkdir(exist_ok=True)
    paths = []
    for shown, before, after in zip(wanted, *halves, strict=True):
        path = folder / PICTURES / f"{shown.seed}.png"
        _beside(before, after).save(path, pnginfo=_text(shown))
        paths.append(path)
    return paths


def prompts(pipe: Any, recipe: Mapping[str, Any]) -> list[str]:
    """Two prompts of the first targets, then two of what should stay."""
    found = facts.concepts(recipe)
    own = [_prompts(concept) for concept in found[:EACH]]
    first = [each[i % len(each)] for i, each in enumerate(own)]
    if len(own) == 1:
        first += own[0][1:EACH] or own[0][:1]
    retained = facts.texts(mapping(recipe.get("config")).get("retain"))
    if not retained:
        names = [name for c in found for name in (c["target"], *facts.texts(c.get("aliases")))]
        names += facts.texts([c.get("anchor") for c in found])
        words = without(vocabulary(pipe) or FALLBACK, names)
        drawn = random.Random(0).sample(words, min(EACH, len(words)))
        retained = [fill("a {}", word) for word in drawn]
    return first + retained[:EACH]


def prompt_of(path: Path) -> str:
    """The prompt of a picture that `draw_pictures` wrote; "" of others."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("prompt", ""))
    except (OSError, SyntaxError, ValueError):
        return ""


def _prompts(concept: Mapping[str, Any]) -> list[str]:
    own = [text for text in facts.texts(concept.get("prompts")) if "{word}" not in text]
    kind = concept.get("kind")
    templates = own or list(TEMPLATES.get(kind if isinstance(kind, str) else "", ("a {}",)))
    return [fill(template, concept["target"]) for template in templates]


def _obstacle(pipe: Any, model: torch.nn.Module) -> str | None:
    """Why nothing can be drawn; None: it can."""
    parameters = inspect.signature(pipe.__call__).parameters
    if "num_frames" in parameters:
        return f"{type(pipe).__name__} draws videos"
    if "output_type" not in parameters or "generator" not in parameters:
        return f"{type(pipe).__name__} gives no pictures"
    try:
        adapters.check_denoiser(model)
    except ValueError as error:
        return str(error)
    return None


@contextmanager
def _alone(
    pipe: Any, component: str, adapter_name: str, others: Mapping[str, Any]
) -> Iterator[None]:
    """The adapter active, and with it only those that it was trained beside."""
    model = getattr(pipe, component)
    there = getattr(model, "peft_config", {})
    beside = {name: value for name, value in others.items() if name in there}
    before = adapters.snapshot(model)
    with untouched(pipe), ExitStack() as stack:
        try:
            for name, strength in beside.items():
                stack.enter_context(adapters.scaled(model, name, strength))
            adapters.activate(model, [*beside, adapter_name])
            model.eval()
            yield
        finally:
            adapters.activate(model, before.active)
            adapters.restore_flags(model, before)


def _draw(pipe: Any, shown: Shown, kwargs: Mapping[str, Any]) -> Image.Image:
    generator = torch.Generator().manual_seed(shown.seed)
    output = pipe(shown.prompt, generator=generator, output_type="pil", **kwargs)
    image = output.images[0]
    if max(image.size) > SIDE:
        image = image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image.convert("RGB")


def _beside(before: Image.Image, after: Image.Image) -> Image.Image:
    width, height = before.size
    both = Image.new("RGB", (2 * width + GAP, height), "white")
    both.paste(before, (0, 0))
    both.paste(after, (width + GAP, 0))
    return both


def _text(shown: Shown) -> PngInfo:
    """What a picture says of itself, in the file."""
    info = PngInfo()
    info.add_itxt("prompt", cleaned(shown.prompt, 1000))
    info.add_itxt("seed", str(shown.seed))
    return info
