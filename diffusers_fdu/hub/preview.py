"""Pictures for a model card: the same prompt and noise without the adapter and with it."""

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..adapters import lora as adapters
from ..adapters.hub_files import PICTURES
from ..adapters.stacking import at_strengths, strengths
from ..adapters.summary import concepts, mapping, text_or_empty, texts
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
FALLBACK = ("tree", "house", "bicycle", "mountain", "cup", "bridge")  # where there are no words


def draw_pictures(
    pipe: Any,
    component: str,
    adapter_name: str,
    recipe: Mapping[str, Any],
    pipeline_kwargs: Mapping[str, Any],
    folder: Path,
) -> list[Path]:
    """Draw two prompts with the targets and two without, before and after, for a model card.

    The pipe, which has the adapter on its denoiser `component`, is left as it is. The files are
    `images/0.png` and so on in the folder; where the pipeline gives no pictures, there is a
    warning in their place.
    """
    try:
        check_pictures(pipe)
        adapters.check_denoiser(getattr(pipe, component))
    except ValueError as error:
        warnings.warn(f"no pictures for the model card: {error}", UserWarning, stacklevel=3)
        return []
    prompts = card_prompts(pipe, recipe)
    seeds = range(len(prompts))
    kwargs = {name: value for name, value in pipeline_kwargs.items() if name not in RESERVED}
    # Both halves have the adapters that were part of the frozen model, and no others.
    trained_beside = mapping(recipe.get("active_adapters"))
    values = {name: trained_beside.get(name, 0.0) for name in strengths(pipe)}
    halves = []
    for strength in (0.0, 1.0):
        with at_strengths(pipe, {**values, adapter_name: strength}):
            halves.append(generate(pipe, prompts, seeds, batch=1, **kwargs))
    (folder / PICTURES).mkdir(exist_ok=True)
    paths = [folder / PICTURES / f"{seed}.png" for seed in seeds]
    for path, seed, prompt, before, after in zip(paths, seeds, prompts, *halves, strict=True):
        content = PngInfo()
        content.add_itxt("prompt", cleaned(prompt, 1000))
        content.add_itxt("seed", str(seed))
        _side_by_side(before, after).save(path, pnginfo=content)
    return paths


def card_prompts(pipe: Any, recipe: Mapping[str, Any]) -> list[str]:
    """Two prompts of the first targets, then two of what should stay."""
    unlearned = concepts(recipe)
    by_concept = [_concept_prompts(concept) for concept in unlearned[:EACH]]
    targets = [prompts[i % len(prompts)] for i, prompts in enumerate(by_concept)]
    if len(by_concept) == 1:
        targets += by_concept[0][1:EACH] or by_concept[0][:1]
    retained = texts(mapping(recipe.get("config")).get("retain"))
    if not retained:
        names = [name for c in unlearned for name in (c["target"], *texts(c.get("aliases")))]
        names += texts([concept.get("anchor") for concept in unlearned])
        words = without(vocabulary(pipe) or FALLBACK, names)
        drawn = random.Random(0).sample(words, min(EACH, len(words)))
        retained = [fill("a {}", word) for word in drawn]
    return targets + retained[:EACH]


def prompt_of(path: Path) -> str:
    """The prompt of a picture that `draw_pictures` wrote; "" for other pictures."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("prompt", ""))
    except (OSError, SyntaxError, ValueError):
        return ""


def _concept_prompts(concept: Mapping[str, Any]) -> list[str]:
    prompts = [text for text in texts(concept.get("prompts")) if "{word}" not in text]
    templates = prompts or TEMPLATES.get(text_or_empty(concept.get("kind")), ("a {}",))
    return [fill(template, concept["target"]) for template in templates]


def _side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    halves = [before.convert("RGB"), after.convert("RGB")]
    for half in halves:
        half.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # smaller ones stay as they are
    width, height = halves[0].size
    picture = Image.new("RGB", (2 * width + GAP, height), "white")
    picture.paste(halves[0], (0, 0))
    picture.paste(halves[1], (width + GAP, 0))
    return picture
