"""What stands on the page, and the server that shows it; all that needs gradio."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..pipelines.generate import takes_argument
from .renderer import GUIDANCE_SCALE, STEPS, Renderer, code, guidance_name
from .replies import answers, unlearns

MAX_STRENGTH = 1.5
SUBTITLE = "The base model beside the unlearned one, from the same seed"
TEMPORARY = (600, 3600)  # seconds: how often old pictures are deleted, and what is old

CSS = """
:root { --block-info-text-color: #52525b; }
.dark { --block-info-text-color: #a1a1aa; }
#title, #title *, #message, #message .html-container { padding: 0; }
#title h1 { font-size: 1.4rem; margin: 0 0 4px; overflow-wrap: anywhere; }
#pictures { flex-wrap: nowrap; }
#base, #unlearned { aspect-ratio: 1; height: auto !important; }
#pictures img { width: 100%; height: 100%; object-fit: contain; }
#message p { margin: 0; padding: 10px 14px; border-radius: 4px; overflow-wrap: anywhere;
  color: var(--body-text-color); background: var(--background-fill-secondary);
  border-left: 4px solid #dc2626; }
"""


def check_gradio() -> Any:
    """Gradio, told before it is imported that nothing is to be reported home."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the page needs gradio: pip install "diffusers-fdu[app]"') from error
    return gradio


def build_page(
    pipe: Any,
    adapter_names: Sequence[str] | None = None,
    *,
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    **pipeline_kwargs: Any,
) -> Any:
    """A page that draws a prompt with the base model and with the unlearned one.

    Every adapter has a slider for its strength. Pictures are drawn one at a time, whoever asks,
    and the pipe's own strengths are as before after each. What was drawn is kept, so that moving
    a slider draws one picture, not two.

    Args:
        pipe: a diffusers pipeline with adapters.
        adapter_names: those that get a slider; None: all on the pipe. Others stay as they are,
            in both pictures.
        recipes: what is known of adapters, by name, as `recipe.json` has it.
        steps: at first; None: the pipeline's own default, 25 of the embedded model.
        guidance_scale: at first; None: what the first recipe recorded with, or the pipeline's
            own default, 4 of the embedded model.
        **pipeline_kwargs: other arguments of the pipeline, such as height and width.

    Returns:
        A `gradio.Blocks`. `serve` shows it; its own `launch` and `mount_gradio_app` work, too.

    Raises:
        ImportError: without gradio.
        ValueError: if an adapter is not on the pipe, there is none, or they are fused or off.
    """
    gr = check_gradio()
    painter = Renderer(pipe, adapter_names, pipeline_kwargs)
    recipes = recipes or {}
    first = _first_values(painter, recipes, steps, guidance_scale)
    with gr.Blocks(title="Unlearned", analytics_enabled=False, delete_cache=TEMPORARY) as page:
        title = f"<style>{CSS}</style><h1>{html.escape(painter.title)}</h1>{SUBTITLE}"
        gr.HTML(title, elem_id="title", padding=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                fields, sliders, button = _controls(gr, painter, recipes, first)
            with gr.Column(scale=3, min_width=320):
                outputs, line = _pictures(gr, painter, [slider.value for slider in sliders])
        _connect(gr, painter, fields, sliders, button, outputs, line)
    return page


def _first_values(
    painter: Renderer,
    recipes: Mapping[str, Mapping[str, Any]],
    steps: int | None,
    guidance_scale: float | None,
) -> tuple[int, float | None]:
    """Steps and guidance that the page starts with."""
    recorded = [recipes.get(name, {}).get("pipeline_kwargs") for name in painter.names]
    known = [r.get(guidance_name(painter.pipe)) for r in recorded if isinstance(r, Mapping)]
    known = [float(g) for g in known if isinstance(g, int | float)]
    defaults = painter.defaults()
    if guidance_scale is None:
        guidance_scale = (known or [defaults.get(GUIDANCE_SCALE)])[0]
    return steps or defaults[STEPS], guidance_scale


def _controls(
    gr: Any,
    painter: Renderer,
    recipes: Mapping[str, Mapping[str, Any]],
    first: tuple[int, float | None],
) -> tuple[dict[str, Any], list[Any], Any]:
    """Prompt, numbers, sliders and button."""
    fields = {
        "prompt": gr.Textbox(label="Prompt", lines=1, elem_id="prompt"),
        "negative_prompt": gr.Textbox(
            label="Negative prompt",
            placeholder="optional",
            lines=1,
            visible=takes_argument(painter.pipe, "negative_prompt"),
        ),
    }
    with gr.Row():
        number = {"min_width": 90}
        fields["seed"] = gr.Number(0, label="Seed", precision=0, elem_id="seed", **number)
        fields["steps"] = gr.Number(first[0], label="Steps", precision=0, minimum=1, **number)
        fields["guidance_scale"] = gr.Number(
            first[1], label="Guidance", visible=first[1] is not None, **number
        )
    sliders = [
        gr.Slider(
            0,
            MAX_STRENGTH,
            1.0,
            step=0.05,
            label=name,
            info=unlearns(recipes.get(name, {})) or None,
            elem_id=f"strength-{i}",
        )
        for i, name in enumerate(painter.names)
    ]
    return fields, sliders, gr.Button("Draw", variant="primary", elem_id="draw")


def _pictures(gr: Any, painter: Renderer, values: Sequence[float]) -> tuple[list[Any], Any]:
    """The two pictures, what went wrong, and the line of code."""
    # PNG, since the default loses what differs between two pictures that are nearly the same.
    picture = {"format": "png", "interactive": False, "min_width": 120}
    picture["buttons"] = ["download", "fullscreen"]
    with gr.Row(elem_id="pictures"):
        base = gr.Image(label="Base model", elem_id="base", **picture)
        unlearned = gr.Image(label="Unlearned", elem_id="unlearned", **picture)
    told = gr.HTML(elem_id="message", padding=False, visible=False)
    line = gr.Code(
        code(painter, values),
        language="python",
        label="These strengths in code",
        interactive=False,
        lines=1,
        wrap_lines=True,
        show_line_numbers=False,
        elem_id="code",
        buttons=["copy"],
    )
    return [base, unlearned, told], line


def _connect(
    gr: Any,
    painter: Renderer,
    fields: Mapping[str, Any],
    sliders: Sequence[Any],
    button: Any,
    outputs: Sequence[Any],
    line: Any,
) -> None:
    """What happens when the button is pressed, or a slider moved."""

    # The default makes gradio show the steps of the pipeline's own progress bar.
    def draw(progress: Any = gr.Progress(track_tqdm=True), *given: Any) -> Iterator[Any]:  # noqa: B008
        wish = dict(zip(fields, given, strict=False))
        for base, unlearned, told in answers(painter, wish, given[len(fields) :]):
            yield base, unlearned, gr.HTML(told, visible=bool(told))

    def written(*values: float) -> str:
        return code(painter, values)

    # One queue for all that draws: the pipe is one object.
    quiet = {"api_visibility": "private"}
    drawing = {"concurrency_limit": 1, "concurrency_id": "pipe", **quiet}
    inputs = [*fields.values(), *sliders]
    gr.on(
        [button.click, fields["prompt"].submit, fields["negative_prompt"].submit],
        draw,
        inputs,
        list(outputs),
        show_progress_on=list(outputs[:2]),
        **drawing,
    )
    gr.on(
        [s.change for s in sliders], written, list(sliders), line, show_progress="hidden", **quiet
    )


def serve(
    pipe: Any,
    adapter_names: Sequence[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    block: bool = True,
    **options: Any,
) -> Any:
    """Show the page of a pipe to this machine's browser.

        serve(FDUnlearner(pipe).unlearn("Snoopy", "dog"))

    Args:
        pipe: see `build_page`.
        adapter_names: see `build_page`.
        host: whom it answers: this machine alone, or with "0.0.0.0" whoever reaches it. There is
            no password.
        port: None: the first free one from 7860.
        block: until interrupted. False: go on; `.close()` ends it.
        **options: of `build_page`.

    Returns:
        The `gradio.Blocks`; `.local_url` is where it is.

    Raises:
        ImportError: without gradio.
        OSError: if the port or the host cannot be used.
        ValueError: see `build_page`.
    """
    page = build_page(pipe, adapter_names, **options)
    gr = check_gradio()
    # Fonts of the system, which are there without a network.
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Default(font=sans, font_mono=mono),
        )
    except OSError as error:
        raise OSError(f"port {port} of {host} cannot be used: pass another") from error
    print(f"the page is at {page.local_url}", flush=True)
    if block:
        page.block_thread()
    return page
