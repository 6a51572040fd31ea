"""What the studies share: the embedded model's judge, seeds, and results that survive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers_fdu import Concept
from diffusers_fdu.emoji.loading import load_emoji_judge
from diffusers_fdu.emoji.vocabulary import CONCEPTS, STYLES
from diffusers_fdu.evaluation.attacks.attack import AttackTarget
from diffusers_fdu.evaluation.emoji import Scores, measure
from diffusers_fdu.utils.statistics import Estimate, estimate

RUNS = {"guidance_scale": 4.0}
ALL: dict[str, Any] = {"trajectories": 96}
"""Everything is recorded, as when the rows in docs were measured."""
DRAW = {"num_inference_steps": 15}


def concept(target: str, anchor: str) -> Concept:
    """Of the kind that the embedded model has it in."""
    return Concept(target, anchor, kind="object" if target in CONCEPTS else "style")


def judged(pipe: Any, target: str) -> Scores:
    """UA, IRA, CRA: 156 pictures for a concept, 160 for a style, in 15 steps."""
    return measure(pipe, target, **DRAW)


def scene(pipe: Any, target: str, drawing: Mapping[str, Any] = DRAW, **where: Any) -> AttackTarget:
    """The embedded model under attack, its pictures judged by its judge.

    Args:
        pipe: it.
        target: what it forgot.
        drawing: arguments of the pipe when pictures are drawn.
        **where: the original model, see `AttackTarget`.
    """
    judge, place = load_emoji_judge(), 0 if target in CONCEPTS else 1
    if place == 0:
        templates = [f"a {{}} emoji in {style} style" for style in STYLES]
    else:
        templates = [f"a {name} emoji in {{}} style" for name in CONCEPTS[::8]]
    settings = {**RUNS, **drawing}
    return AttackTarget(
        pipe,
        target,
        lambda images: [seen[place] == target for seen in judge(images)],
        templates,
        settings=settings,
        **where,
    )


class Results:
    """Rows in a file of JSON lines; what is there is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row with these values."""
        return next((r for r in self.rows if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def over(rows: Sequence[dict[str, Any]], name: str) -> Estimate:
    """Mean and interval of one figure over rows."""
    return estimate([row[name] for row in rows])


def line(cells: Sequence[Any]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(map(str, cells)) + " |"
