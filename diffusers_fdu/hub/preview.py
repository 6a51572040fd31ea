"""Pictures for a model card: the same prompt and noise without the adapter and with it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..adapters import lora as adapters
from ..adapters.contents import PICTURES
from ..adapters.stacking import at_strengths, strengths
from ..adapters.summary import concepts, mapping, texts
from ..data.templates import fill, without
from ..pipelines.call_signature import RESERVED
from ..pipelines.generate import check_pictures, generate
from ..pipelines.tokenizers import vocabulary
from ..utils.markup import cleaned

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
    wanted = prompts(pipe, recipe)
    seeds = range(len(wanted))
    kwargs = {name: value for name, value in pipeline_kwargs.items() if name not in RESERVED}
    halves = []
    beside = mapping(recipe.get("active_adapters"))
    values = {name: beside.get(name, 0.0) for name in strengths(pipe)}
    for strength in (0.0, 1.0):
        with at_strengths(pipe, {**values, adapter_name: strength}):
            halves.append(generate(pipe, wanted, seeds, batch=1, **kwargs))
    (folder / PICTURES).mkdir(exist_ok=True)
    paths = []
    for seed, prompt, before, after in zip(seeds, wanted, *halves, strict=True):
        path = folder / PICTURES / f"{seed}.png"
        _beside(_small(before), _small(after)).save(path, pnginfo=_text(prompt, seed))
        paths.append(path)
    return paths


def prompts(pipe: Any, recipe: Mapping[str, Any]) -> list[str]:
    """Two prompts of the first targets, then two of what should stay."""
    found = concepts(recipe)
    own = [_prompts(concept) for concept in found[:EACH]]
    first = [each[i % len(each)] for i, each in enumerate(own)]
    if len(own) == 1:
        first += own[0][1:EACH] or own[0][:1]
    retained = texts(mapping(recipe.get("config")).get("retain"))
    if not retained:
        names = [name for c in found for name in (c["target"], *texts(c.get("aliases")))]
        names += texts([c.get("anchor") for c in found])
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
    own = [text for text in texts(concept.get("prompts")) if "{word}" not in text]
    kind = concept.get("kind")
    templates = own or list(TEMPLATES.get(kind if isinstance(kind, str) else "", ("a {}",)))
    return [fill(template, concept["target"]) for template in templates]


def _obstacle(pipe: Any, model: torch.nn.Module) -> str | None:
    """Why nothing can be drawn; None: it can."""
    try:
        check_pictures(pipe)
        adapters.check_denoiser(model)
    except ValueError as error:
        return str(error)
    return None


def _small(image: Image.Image) -> Image.Image:
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


def _text(prompt: str, seed: int) -> PngInfo:
    """What a picture says of itself, in the file."""
    info = PngInfo()
    info.add_itxt("prompt", cleaned(prompt, 1000))
    info.add_itxt("seed", str(seed))
    return info
