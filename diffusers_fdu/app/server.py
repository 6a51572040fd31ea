"""What stands on the page, and the server that shows it; all that needs gradio."""

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters.summary import concept_summary, concepts, text_or_empty
from ..pipelines.generate import takes_argument
from .renderer import GUIDANCE_SCALE, STEPS, Renderer, shortened

Recipes = Mapping[str, Mapping[str, Any]]  # by the adapters' names
MAX_STRENGTH = 1.5
SUBTITLE = "The base model beside the unlearned one, from the same seed"
STYLE = (Path(__file__).parent / "page.css").read_text()
DELETE_CACHE = (600, 3600)  # seconds: how often old pictures are deleted, and what is old
# Where a label reads HTML or Markdown these are more than text, and a recipe may be a stranger's.
PLAIN = str.maketrans("<>[]", "‹›()")

# PNG, since the default loses what differs between two pictures that are nearly the same.
PICTURE = {"format": "png", "interactive": False, "min_width": 120}
PICTURE |= {"buttons": ["download", "fullscreen"]}
CODE = {"language": "python", "interactive": False, "lines": 1, "buttons": ["copy"]}
CODE |= {"wrap_lines": True, "show_line_numbers": False}
# The server answers only with this page: it shares, watches and reports nothing.
SERVER: dict[str, Any] = {"share": False, "ssr_mode": False, "mcp_server": False}
SERVER |= {"run_history": False, "footer_links": [], "quiet": True, "prevent_thread_lock": True}


def check_gradio() -> Any:
    """The module gradio, told before it is imported that nothing is to be reported home."""
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
    recipes: Recipes | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    **pipeline_kwargs: Any,
) -> Any:
    """A `gradio.Blocks` that draws a prompt with the base model and with the unlearned one.

    Pictures are drawn one at a time, whoever asks, and the pipe's own strengths stay as they were.
    What was drawn is kept, so that moving a slider draws one picture, not two.

    Args:
        pipe: a diffusers pipeline with adapters.
        adapter_names: the adapters that get a slider; by default all on the pipe. Others stay as
            they are, in both pictures.
        recipes: recipes of adapters by name, as `recipe.json` has them.
        steps: number of steps at first; by default the pipeline's own, 25 of the embedded model.
        guidance_scale: guidance scale at first; by default what the first recipe recorded with,
            or the pipeline's own, 4 of the embedded model.
        **pipeline_kwargs: other arguments of the pipeline, such as height and width.
    """
    gr = check_gradio()
    renderer = Renderer(pipe, adapter_names, pipeline_kwargs)
    recipes = recipes or {}
    if guidance_scale is None:
        guidance_scale = _recorded_guidance(renderer, recipes)
    with gr.Blocks(title="Unlearned", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        title = f"<style>{STYLE}</style><h1>{html.escape(renderer.title)}</h1>{SUBTITLE}"
        gr.HTML(title, elem_id="title", padding=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                fields = _fields(gr, renderer, steps or renderer.defaults[STEPS], guidance_scale)
                sliders = _sliders(gr, renderer, recipes)
                button = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Column(scale=3, min_width=320):
                with gr.Row(elem_id="pictures"):
                    base = gr.Image(label="Base model", elem_id="base", **PICTURE)
                    unlearned = gr.Image(label="Unlearned", elem_id="unlearned", **PICTURE)
                message = gr.HTML(elem_id="message", padding=False, visible=False)
                line = renderer.code([slider.value for slider in sliders])
                code = gr.Code(line, label="These strengths in code", elem_id="code", **CODE)
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        moved = [slider.change for slider in sliders]
        gr.on(moved, lambda *strengths: renderer.code(strengths), sliders, code, **quiet)
        _connect_button(gr, renderer, button, fields, sliders, [base, unlearned, message])
    return page


def _recorded_guidance(renderer: Renderer, recipes: Recipes) -> float | None:
    """The guidance scale of the first recipe that has one; else the renderer's default."""
    recorded = [recipes.get(name, {}).get("pipeline_kwargs") for name in renderer.names]
    scales = [r.get(renderer.guidance_name) for r in recorded if isinstance(r, Mapping)]
    scales = [float(scale) for scale in scales if isinstance(scale, int | float)]
    return (scales or [renderer.defaults[GUIDANCE_SCALE]])[0]


def _fields(gr: Any, renderer: Renderer, steps: int, guidance: float | None) -> dict[str, Any]:
    """The fields of a request, by name."""
    has_negative = takes_argument(renderer.pipe, "negative_prompt")
    negative = {"placeholder": "optional", "lines": 1, "visible": has_negative}
    number = {"min_width": 90}
    fields = {
        "prompt": gr.Textbox(label="Prompt", lines=1, elem_id="prompt"),
        "negative_prompt": gr.Textbox(label="Negative prompt", **negative),
    }
    with gr.Row():
        fields["seed"] = gr.Number(0, label="Seed", precision=0, elem_id="seed", **number)
        fields["steps"] = gr.Number(steps, label="Steps", precision=0, minimum=1, **number)
        number["visible"] = guidance is not None
        fields["guidance_scale"] = gr.Number(guidance, label="Guidance", **number)
    return fields


def _sliders(gr: Any, renderer: Renderer, recipes: Recipes) -> list[Any]:
    sliders = []
    for i, name in enumerate(renderer.names):
        info = unlearns(recipes.get(name, {})) or None
        labels = {"label": name, "info": info, "elem_id": f"strength-{i}"}
        sliders.append(gr.Slider(0, MAX_STRENGTH, 1.0, step=0.05, **labels))
    return sliders


def unlearns(recipe: Mapping[str, Any]) -> str:
    """What an adapter unlearns, by its recipe; empty if that says nothing."""
    summaries = [str(concept_summary(concept)) for concept in concepts(recipe)]
    if not summaries:
        return ""
    f = text_or_empty(recipe.get("f"))
    text = f"unlearns {', '.join(summaries)}" + (f", f = {f}" if f else "")
    return shortened(text.replace("->", "→")).translate(PLAIN)


def _connect_button(
    gr: Any,
    renderer: Renderer,
    button: Any,
    fields: Mapping[str, Any],
    sliders: Sequence[Any],
    outputs: list[Any],
) -> None:
    """Draw when the button is pressed, or Enter in a prompt."""

    # The default makes gradio show the steps of the pipeline's own progress bar.
    def draw(progress: Any = gr.Progress(track_tqdm=True), *values: Any) -> Iterator[Any]:  # noqa: B008
        form = dict(zip(fields, values, strict=False))
        for base, unlearned, message in renderer.draw_both(form, values[len(fields) :]):
            yield base, unlearned, gr.HTML(message, visible=bool(message))

    triggers = [button.click, fields["prompt"].submit, fields["negative_prompt"].submit]
    # One queue for all that draws: the pipe is one object.
    queue = {"concurrency_limit": 1, "concurrency_id": "pipe", "api_visibility": "private"}
    inputs = [*fields.values(), *sliders]
    gr.on(triggers, draw, inputs, outputs, show_progress_on=outputs[:2], **queue)


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

    Args:
        pipe: a diffusers pipeline with adapters.
        adapter_names: the adapters that get a slider; by default all on the pipe.
        host: address that the page answers at: this machine's alone, or with "0.0.0.0" whoever
            reaches it. There is no password.
        port: port that the page answers at; None for the first free one from 7860.
        block: whether to wait until interrupted; if not, `.close()` of the result ends the page.
        **options: further options of `build_page`.

    Returns:
        The `gradio.Blocks`; `.local_url` is its address.

    Raises:
        ImportError: if gradio is not installed.
        ValueError: if an adapter is not on the pipe, there is none, or they are fused or off.
        OSError: if the port or the host cannot be used.

    Example:
        >>> page = serve(load_unlearned(pipe, "forget-dog"), block=False)  # doctest: +SKIP
        the page is at http://127.0.0.1:7860/
    """
    page = build_page(pipe, adapter_names, **options)
    gr = check_gradio()
    # Fonts of the system, which are there without a network.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(**fonts)
    try:
        page.launch(server_name=host, server_port=port, theme=theme, **SERVER)
    except OSError as error:
        raise OSError(f"port {port} of {host} cannot be used: pass another") from error
    print(f"the page is at {page.local_url}", flush=True)
    if block:
        page.block_thread()
    return page
