"""Pictures of one pipe at any strengths of its adapters, one at a time, each drawn once."""

import html
import inspect
import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL.Image import Image

from ..adapters import lora as adapters
from ..adapters import stacking
from ..pipelines.denoiser import denoiser_names
from ..pipelines.generate import generate, takes_argument

LOGGER = logging.getLogger(__name__)
KEPT = 32  # pictures
STEPS, GUIDANCE_SCALE = "num_inference_steps", "guidance_scale"
GUIDANCE_NAMES = (GUIDANCE_SCALE, "true_cfg_scale")
# These are better than the defaults of the pipeline's class.
DEFAULTS = {"diffusers_fdu/emoji": {STEPS: 25, GUIDANCE_SCALE: 4.0}}
MAX_SEED = 2**53  # the largest number up to which a browser counts
LONGEST_TEXT = 600  # characters


@dataclass(frozen=True)
class GenerationRequest:
    """What is to be drawn, whatever the strengths."""

    prompt: str
    negative_prompt: str  # empty for none
    seed: int
    steps: int
    guidance_scale: float | None  # None for a pipeline without guidance


class Renderer:
    """Draws with one pipe at any strengths of some of its adapters, by default of all.

    Raises:
        ValueError: if an adapter is not on the pipe, there is none, or they are fused or off.
    """

    def __init__(
        self,
        pipe: Any,
        names: Sequence[str] | None = None,
        pipeline_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(names, str):
            raise TypeError(f"pass a list of adapter names, not {names!r}")
        loaded = stacking.strengths(pipe)
        self.names = list(loaded if names is None else dict.fromkeys(names))
        if not self.names:
            raise ValueError("no adapter on the pipe: load one, or unlearn something, first")
        for name in self.names:
            if name not in loaded:
                there = ", ".join(loaded) or "none"
                raise ValueError(f"no adapter {name!r} on the pipe: there are {there}")
        for component in denoiser_names(pipe):
            adapters.check_layers(getattr(pipe, component))
        self.pipe, self.pipeline_kwargs = pipe, dict(pipeline_kwargs or {})
        self.title = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
        parameters = inspect.signature(type(pipe).__call__).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        # Where `guidance_scale` is None unless given (Qwen-Image), another argument guides.
        guides = [name for name in GUIDANCE_NAMES if defaults.get(name) is not None]
        self.guidance_name = guides[0] if guides else None
        scale = defaults[guides[0]] if guides else None
        self.defaults = {STEPS: defaults[STEPS], GUIDANCE_SCALE: scale}
        self.defaults |= DEFAULTS.get(self.title, {})
        self._lock = threading.Lock()
        self._drawn = lru_cache(KEPT)(self._draw)

    def request(self, form: Mapping[str, Any]) -> GenerationRequest:
        """A request from a form; for a missing or wrong field a ValueError says what to do."""
        prompt, seed, steps = (form[name] for name in ("prompt", "seed", "steps"))
        if not (prompt or "").strip():
            raise ValueError("The prompt is empty: say what to draw.")
        for name, value in (("seed", seed), ("number of steps", steps)):
            if value is None or value != int(value):
                raise ValueError(f"The {name} must be a whole number.")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"The seed must be between 0 and {MAX_SEED}, got {seed}.")
        if steps < 1:
            raise ValueError(f"The number of steps must be at least 1, got {steps}.")
        guidance_scale = form["guidance_scale"] if self.guidance_name else None
        if self.guidance_name and (guidance_scale is None or not math.isfinite(guidance_scale)):
            raise ValueError("The guidance must be a number.")
        texts = (prompt.strip(), (form["negative_prompt"] or "").strip())
        return GenerationRequest(*texts, int(seed), int(steps), guidance_scale)

    def draw(self, request: GenerationRequest, strengths: Sequence[float]) -> Image:
        """The picture of a request with a strength for each adapter; all 0 is the base model."""
        with self._lock:
            return self._drawn(request, tuple(map(float, strengths)))

    def _draw(self, request: GenerationRequest, strengths: tuple[float, ...]) -> Image:
        with stacking.at_strengths(self.pipe, dict(zip(self.names, strengths, strict=True))):
            return self._picture(request)

    def _picture(self, request: GenerationRequest) -> Image:
        arguments: dict[str, Any] = {STEPS: request.steps}
        if self.guidance_name is not None and request.guidance_scale is not None:
            arguments[self.guidance_name] = request.guidance_scale
        # Pipelines that are guided by another argument are not, without a negative prompt.
        if request.negative_prompt or self.guidance_name == GUIDANCE_NAMES[1]:
            arguments["negative_prompt"] = request.negative_prompt
        if takes_argument(self.pipe, "num_frames"):
            arguments["num_frames"] = 1
        arguments |= self.pipeline_kwargs
        return generate(self.pipe, [request.prompt], [request.seed], **arguments)[0]

    def draw_both(self, form: Mapping[str, Any], strengths: Sequence[float]) -> Iterator[Any]:
        """Yield (base, unlearned, message) for a form, the base as soon as it is there."""
        base = None
        try:
            request = self.request(form)
            base = self.draw(request, [0.0] * len(strengths))
            yield base, None, ""
            yield base, self.draw(request, strengths), ""
        except Exception as error:  # whatever a pipeline raises, the page goes on
            text = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, ValueError):
                LOGGER.error("the picture could not be drawn", exc_info=error)
                text = f"{type(error).__name__}: {text}"
            yield base, None, f'<p role="alert">{html.escape(shortened(text))}</p>'

    def code(self, strengths: Sequence[float]) -> str:
        """The line of code that gives a pipe these strengths.

        Active adapters without a slider are named, too: `set_adapters` takes off all others.
        """
        values = {n: round(float(v), 4) for n, v in zip(self.names, strengths, strict=True)}
        if not hasattr(self.pipe, "set_adapters"):
            return f"diffusers_fdu.strengths(pipe, {json.dumps(values)})"
        others = stacking.strengths(self.pipe)
        shown = {n: round(v, 4) for n, v in others.items() if v and n not in values} | values
        return f"pipe.set_adapters({json.dumps(list(shown))}, {json.dumps(list(shown.values()))})"


def shortened(text: str) -> str:
    """Text that a page has room for."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
