"""Pictures of one pipe at any strengths of its adapters, one at a time, each drawn once."""

from __future__ import annotations

import inspect
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from ..adapters import lora as adapters
from ..adapters import stacking
from ..pipelines.denoiser import denoiser_names
from ..pipelines.generate import generate, takes_argument

KEPT = 32  # pictures
STEPS, GUIDANCE_SCALE = "num_inference_steps", "guidance_scale"
GUIDANCES = (GUIDANCE_SCALE, "true_cfg_scale")
KNOWN = {"diffusers_fdu/emoji": {STEPS: 25, GUIDANCE_SCALE: 4.0}}  # better than a class's own
MAX_SEED = 2**53  # what a browser counts to


@dataclass(frozen=True)
class GenerationRequest:
    """What is to be drawn, whatever the strengths.

    Args:
        prompt: what the picture shows.
        negative_prompt: what it does not; empty: none.
        seed: of the noise.
        steps: of the scheduler.
        guidance_scale: None: the pipeline has none.
    """

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float | None


def checked(
    pipe: Any, prompt: Any, negative_prompt: Any, seed: Any, steps: Any, guidance_scale: Any
) -> GenerationRequest:
    """A wish from what stands in a form, where anything may be missing.

    Raises:
        ValueError: with what is to be filled in.
    """
    if not (prompt or "").strip():
        raise ValueError("The prompt is empty: say what to draw.")
    for name, value in (("seed", seed), ("number of steps", steps)):
        if value is None or value != int(value):
            raise ValueError(f"The {name} must be a whole number.")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"The seed must be between 0 and {MAX_SEED}, got {seed}.")
    if steps < 1:
        raise ValueError(f"The number of steps must be at least 1, got {steps}.")
    if guidance_name(pipe) is None:
        guidance_scale = None
    elif guidance_scale is None or not math.isfinite(guidance_scale):
        raise ValueError("The guidance must be a number.")
    return GenerationRequest(
        prompt.strip(), (negative_prompt or "").strip(), int(seed), int(steps), guidance_scale
    )


def guidance_name(pipe: Any) -> str | None:
    """The pipeline's argument for guidance; None: it has none.

    Where `guidance_scale` is None unless given (Qwen-Image), another one guides.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    return next((n for n in GUIDANCES if n in known and known[n].default is not None), None)


class Renderer:
    """Draws with one pipe.

    Args:
        pipe: a diffusers pipeline with adapters.
        names: adapters whose strengths are set; None: all on the pipe.
        pipeline_kwargs: of every picture.

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
        known = stacking.strengths(pipe)
        names = list(known if names is None else dict.fromkeys(names))
        if not names:
            raise ValueError("no adapter on the pipe: load one, or unlearn something, first")
        for name in names:
            if name not in known:
                there = ", ".join(known) or "none"
                raise ValueError(f"no adapter {name!r} on the pipe: there are {there}")
        for component in denoiser_names(pipe):
            adapters.check_layers(getattr(pipe, component))
        self.pipe, self.names, self.pipeline_kwargs = pipe, names, dict(pipeline_kwargs or {})
        self._lock = threading.Lock()
        self._drawn: OrderedDict[tuple[GenerationRequest, tuple[float, ...]], Image] = (
            OrderedDict()
        )

    @property
    def title(self) -> str:
        """Of the model: where it is from, or its class."""
        return str(getattr(self.pipe, "name_or_path", None) or type(self.pipe).__name__)

    def defaults(self) -> dict[str, Any]:
        """Steps and guidance of a picture if nothing else is known."""
        known = inspect.signature(type(self.pipe).__call__).parameters
        guided = guidance_name(self.pipe)
        own = {
            STEPS: known[STEPS].default,
            GUIDANCE_SCALE: None if guided is None else known[guided].default,
        }
        return {**own, **KNOWN.get(self.title, {})}

    def draw(self, wish: GenerationRequest, values: Sequence[float]) -> Image:
        """A picture; the same wish at the same strengths is drawn once.

        Args:
            wish: what it shows.
            values: strength of each adapter; all 0: the base model.
        """
        key = (wish, tuple(map(float, values)))
        with self._lock:
            if key not in self._drawn:
                with stacking.at_strengths(self.pipe, dict(zip(self.names, key[1], strict=True))):
                    self._drawn[key] = self._picture(wish)
            self._drawn.move_to_end(key)
            while len(self._drawn) > KEPT:
                self._drawn.popitem(last=False)
            return self._drawn[key]

    def _picture(self, wish: GenerationRequest) -> Image:
        arguments: dict[str, Any] = {STEPS: wish.steps}
        guided = guidance_name(self.pipe)
        if guided is not None and wish.guidance_scale is not None:
            arguments[guided] = wish.guidance_scale
        # Pipelines that are guided by another argument are not, without a negative prompt.
        if wish.negative_prompt or guided == GUIDANCES[1]:
            arguments["negative_prompt"] = wish.negative_prompt
        if takes_argument(self.pipe, "num_frames"):
            arguments["num_frames"] = 1
        arguments |= self.pipeline_kwargs
        return generate(self.pipe, [wish.prompt], [wish.seed], **arguments)[0]


def code(painter: Renderer, values: Sequence[float]) -> str:
    """The line that gives a pipe these strengths.

    Adapters without a slider that are active are named, too: `set_adapters` takes off all others.
    """
    own = {name: round(float(value), 4) for name, value in zip(painter.names, values, strict=True)}
    if not hasattr(painter.pipe, "set_adapters"):
        return f"diffusers_fdu.strengths(pipe, {json.dumps(own)})"
    others = stacking.strengths(painter.pipe)
    shown = {**{n: round(v, 4) for n, v in others.items() if v and n not in own}, **own}
    return f"pipe.set_adapters({json.dumps(list(shown))}, {json.dumps(list(shown.values()))})"
