"""The main job on the embedded model: unlearn, measure, and show what happened."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..adapters.adapter_file import WEIGHTS_NAME
from ..adapters.evaluation_file import sha256, write_evaluation
from ..adapters.hub_files import SHEET_NAME
from ..data.concepts import Concept, Kind
from ..divergences.profiles import divergence
from ..emoji.vocabulary import CONCEPTS, STYLES, caption
from ..evaluation.emoji import FIRST_SEED, Scores, cells, domain_of, draw, measure
from ..settings import settings
from ..unlearner import FDUnlearner
from ..utils.io import writable_folder, write_json
from ..utils.statistics import wilson

GUIDANCE = 4.0
OWN_SEEDS = {"object": 10, "style": 2}  # pictures of each of the target's cells: 40 or 64 in all
OTHER_SEEDS = 2  # pictures of each other cell


def run_demo(
    target: str, anchor: str, f: str, output_dir: Path, load: Callable[[], Any], **config: Any
) -> dict[str, Any]:
    """Unlearn a concept or style of the embedded model; write the sheet, adapter and numbers.

    The pipe is loaded by `load` once the rest is checked. Returns the content of `summary.json`.
    """
    names = CONCEPTS if target in CONCEPTS else STYLES
    for name in (target, anchor):
        if name not in names:
            raise ValueError(f"the embedded model has no {name!r}: choose {', '.join(names)}")
    kind: Kind = "object" if target in CONCEPTS else "style"
    concept, f_divergence = Concept(target, anchor, kind=kind), divergence(f)
    settings(config)
    folder = writable_folder(output_dir)
    pipe, prompts, own_seeds = load(), _sheet_prompts(target), OWN_SEEDS[domain_of(target)]
    images_before = draw(pipe, prompts, range(len(prompts)), progress="draw before")
    before = measure(pipe, target, own_seeds, OTHER_SEEDS, "before")
    unlearner = FDUnlearner(pipe, {"guidance_scale": GUIDANCE}, **config)
    started = time.monotonic()
    unlearner.unlearn(concept, f=f_divergence)
    seconds = time.monotonic() - started
    after = measure(pipe, target, own_seeds, OTHER_SEEDS, "after")
    images_after = draw(pipe, prompts, range(len(prompts)), progress="draw after")
    _sheet(images_before, images_after, target, anchor).save(folder / SHEET_NAME)
    unlearner.save(folder)
    summary = {
        "target": target,
        "anchor": anchor,
        "f": f,
        "before": before._asdict(),
        "after": after._asdict(),
        "seconds": {"unlearn": round(seconds, 1), **unlearner.recipe["seconds"]},
        "steps": len(unlearner.history),
        "sigma": unlearner.recipe["sigma"][0],
    }
    write_json(folder / "summary.json", summary)
    evaluation = demo_evaluation(target, before, after)
    write_evaluation({**evaluation, "weights_sha256": sha256(folder / WEIGHTS_NAME)}, folder)
    return summary


def demo_evaluation(target: str, before: Scores, after: Scores) -> dict[str, Any]:
    """The scores of a target in the format of `evaluation_file`."""
    own_seeds = OWN_SEEDS[domain_of(target)]
    images, own_images = after.images, len(cells(target)) * own_seeds
    metrics = {}
    for name in ("ua", "ira", "cra"):
        value = getattr(after, name)
        count = own_images if name == "ua" else images - own_images
        low, high = wilson(round(value * count), count)
        metric = {"value": value, "low": low, "high": high, "before": getattr(before, name)}
        metrics[name] = {key: round(number, 4) for key, number in metric.items()}
    own, other = (f"{FIRST_SEED} to {FIRST_SEED + n - 1}" for n in (own_seeds, OTHER_SEEDS))
    kind, other_kind = ("concept", "style") if target in CONCEPTS else ("style", "concept")
    protocol = (
        f"All {len(CONCEPTS)} concepts in all {len(STYLES)} styles of the embedded model, drawn "
        f"with 25 DDIM steps at guidance {GUIDANCE:g}: {own_images} pictures of the target with "
        f"the seeds {own}, {images - own_images} of the others with the seeds {other}. UA: share "
        f"of the target's pictures that are not judged the target. IRA: share of the others with "
        f"the right {kind}; CRA: with the right {other_kind}. Prompts are those that the model "
        "was trained with. 95 % Wilson intervals, as if pictures were independent."
    )
    return {
        "protocol": protocol,
        "images": images,
        "seeds": list(range(FIRST_SEED, FIRST_SEED + max(own_seeds, OTHER_SEEDS))),
        "judge": "the embedded judge, a classifier of concepts and styles",
        "metrics": metrics,
    }


def _sheet_prompts(target: str) -> list[str]:
    """Eight prompts with the target, then eight without it."""
    if target in CONCEPTS:
        own = [caption(target, style) for style in STYLES] * 2
        others = [c for c in CONCEPTS if c != target]
        return own + [caption(c, STYLES[i % 4]) for i, c in enumerate(others[::4])]
    own = [caption(c, target) for c in CONCEPTS[::4]]
    other_styles = [s for s in STYLES if s != target]
    return own + [caption(c, other_styles[i % 3]) for i, c in enumerate(CONCEPTS[1::4])]


def _sheet(
    before: Sequence[Image.Image], after: Sequence[Image.Image], target: str, anchor: str
) -> Image.Image:
    """Four rows of eight pictures: the target before and after, the others before and after."""
    side, gap, margin = 96, 4, 190
    rows = (
        (f'"{target}", before', before[:8]),
        (f'"{target}" -> "{anchor}"', after[:8]),
        ("others, before", before[8:16]),
        ("others, after", after[8:16]),
    )
    sheet = Image.new("RGB", (margin + 8 * (side + gap), 4 * (side + gap) + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for row, (label, images) in enumerate(rows):
        top = gap + row * (side + gap)
        pen.text((8, top + side // 2 - 8), label, fill="black", font=font)
        for column, image in enumerate(images):
            large = image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(large, (margin + column * (side + gap), top))
    return sheet
