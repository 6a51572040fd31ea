"""The main job on the embedded model: unlearn, measure, and show what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..adapters.adapter_file import WEIGHTS_NAME
from ..adapters.evaluation_file import sha256, write_evaluation
from ..data.concepts import Concept, Kind
from ..divergences.profiles import divergence
from ..emoji.loading import load_emoji_pipeline
from ..emoji.vocabulary import CONCEPTS, STYLES, caption
from ..settings import settings
from ..unlearner import FDUnlearner
from ..utils.io import writable_folder, write_json
from ..utils.statistics import wilson
from .emoji import FIRST_SEED, Scores, cells, draw, measure

GUIDANCE = 4.0
OTHER_SEEDS = 2  # pictures of each cell that is not the target's


def run_demo(
    target: str,
    anchor: str,
    f: str,
    output_dir: Path,
    load: Callable[[], Any] = load_emoji_pipeline,
    **config: Any,
) -> dict[str, Any]:
    """Unlearn a concept or style of the embedded model; write picture, adapter and numbers.

    Args:
        target: one of the embedded model's concepts or styles.
        anchor: another of the same kind.
        f: the divergence.
        output_dir: gets `before_after.png`, `summary.json`, `evaluation.json` and the adapter.
        load: loads the embedded model, once the rest is checked.
        **config: fields of `TrainConfig`, `DataConfig` and `PerformanceConfig`.

    Returns:
        The summary, as written.

    Raises:
        ValueError: if the embedded model does not know the target, or the folder cannot be
            written.
    """
    known = CONCEPTS if target in CONCEPTS else STYLES
    for name in (target, anchor):
        if name not in known:
            raise ValueError(f"the embedded model has no {name!r}: choose {', '.join(known)}")
    kind: Kind = "object" if target in CONCEPTS else "style"
    concept, f_divergence = Concept(target, anchor, kind=kind), divergence(f)
    settings(config)
    folder = writable_folder(output_dir)
    pipe = load()
    shown = shown_prompts(target)
    before_images = draw(pipe, shown, range(len(shown)), progress="draw before")
    before = measure(pipe, target, seeds(target), OTHER_SEEDS, "before")
    unlearner = FDUnlearner(pipe, {"guidance_scale": GUIDANCE}, **config)
    started = time.monotonic()
    unlearner.unlearn(concept, f=f_divergence)
    seconds = time.monotonic() - started
    after = measure(pipe, target, seeds(target), OTHER_SEEDS, "after")
    after_images = draw(pipe, shown, range(len(shown)), progress="draw after")
    picture = before_after(before_images, after_images, target, anchor)
    picture.save(folder / "before_after.png")
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
    found = evaluation(target, before, after)
    write_evaluation({**found, "weights_sha256": sha256(folder / WEIGHTS_NAME)}, folder)
    return summary


def evaluation(target: str, before: Scores, after: Scores) -> dict[str, Any]:
    """What the demo measures, as `measured` has it.

    Args:
        target: what was unlearned.
        before: its scores on the frozen model.
        after: its scores with the adapter.
    """
    images, drawn = after.images, len(cells(target)) * seeds(target)
    counts = {"ua": drawn, "ira": images - drawn, "cra": images - drawn}
    metrics = {}
    for name, count in counts.items():
        share = getattr(after, name)
        low, high = wilson(round(share * count), count)
        value = {"value": share, "low": low, "high": high, "before": getattr(before, name)}
        metrics[name] = {key: round(number, 4) for key, number in value.items()}
    most = max(seeds(target), OTHER_SEEDS)
    own, kept = (f"{FIRST_SEED} to {FIRST_SEED + n - 1}" for n in (seeds(target), OTHER_SEEDS))
    kind, other = ("concept", "style") if target in CONCEPTS else ("style", "concept")
    protocol = (
        f"All {len(CONCEPTS)} concepts in all {len(STYLES)} styles of the embedded model, drawn "
        f"with 25 DDIM steps at guidance {GUIDANCE:g}: {drawn} pictures of the target with the "
        f"seeds {own}, {images - drawn} of the others with the seeds {kept}. UA: share of the "
        f"target's pictures that are not judged the target. IRA: share of the others with the "
        f"right {kind}; CRA: with the right {other}. Prompts are those that the model was trained "
        "with. 95 % Wilson intervals, as if pictures were independent."
    )
    return {
        "protocol": protocol,
        "images": images,
        "seeds": list(range(FIRST_SEED, FIRST_SEED + most)),
        "judge": "the embedded judge, a classifier of concepts and styles",
        "metrics": metrics,
    }


def seeds(target: str) -> int:
    """Pictures of each of the target's cells: 40 in all of a concept, 64 of a style."""
    return 10 if target in CONCEPTS else OTHER_SEEDS


def shown_prompts(target: str) -> list[str]:
    """Eight prompts with the target, then eight without it."""
    if target in CONCEPTS:
        own = [caption(target, style) for style in STYLES] * 2
        rest = [c for c in CONCEPTS if c != target]
        return own + [caption(c, STYLES[i % 4]) for i, c in enumerate(rest[::4])]
    own = [caption(c, target) for c in CONCEPTS[::4]]
    rest = [s for s in STYLES if s != target]
    return own + [caption(c, rest[i % 3]) for i, c in enumerate(CONCEPTS[1::4])]


def before_after(
    before: Sequence[Image.Image], after: Sequence[Image.Image], target: str, anchor: str
) -> Image.Image:
    """Four rows of eight pictures: the target before and after, the others before and after."""
    side, gap, margin = 96, 4, 190
    rows = [
        (f'"{target}", before', before[:8]),
        (f'"{target}" -> "{anchor}"', after[:8]),
        ("others, before", before[8:16]),
        ("others, after", after[8:16]),
    ]
    width, height = margin + 8 * (side + gap), 4 * (side + gap) + gap
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for row, (label, images) in enumerate(rows):
        top = gap + row * (side + gap)
        pen.text((8, top + side // 2 - 8), label, fill="black", font=font)
        for column, image in enumerate(images):
            large = image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(large, (margin + column * (side + gap), top))
    return sheet
