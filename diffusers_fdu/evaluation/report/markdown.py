"""An evaluation in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...adapters.summary import sections, shown
from ..result import AttackResult, Evaluation
from .words import (
    headline,
    interval,
    named,
    written,
)


def to_markdown(evaluation: Evaluation) -> str:
    """The report as text."""
    blocks = [f"# {_plain(', '.join(evaluation.targets))}", _plain(headline(evaluation))]
    blocks += [_metrics(evaluation)]
    if evaluation.attacks:
        blocks += ["## Attacks", _attacks(evaluation.attacks)]
    blocks += ["## How", "\n".join(f"- {_plain(line)}" for line in about(evaluation))]
    told = [f"- {_plain(title)}: {_plain(row)}" for title, row in recipe_rows(evaluation)]
    if told:
        blocks += ["## The adapter", "\n".join(told)]
    return "\n\n".join(blocks) + "\n"


def about(evaluation: Evaluation) -> list[str]:
    """How it was measured."""
    settings = ", ".join(f"{key} {shown(value)}" for key, value in evaluation.settings.items())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in evaluation.seconds.items())
    versions = ", ".join(f"{name} {shown(v)}" for name, v in evaluation.versions.items())
    lines = [
        evaluation.about,
        f"{evaluation.images} pictures, as many before",
        f"judge: {shown(evaluation.judge)}",
        f"settings: {settings}" if settings else "",
        "intervals: 95 %, bootstrap over pictures as if they were independent",
        *(f"left out: {shown(reason)}" for reason in evaluation.left_out),
        f"time: {seconds}" if seconds else "",
        f"versions: {versions}" if versions else "",
        f"weights: SHA-256 {evaluation.weights_sha256}" if evaluation.weights_sha256 else "",
    ]
    return [line for line in lines if line]


def recipe_rows(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """What the recipe says, line by line."""
    for title, rows in sections(evaluation.recipe).items():
        for row in rows:
            yield title, row.strip()


def _metrics(evaluation: Evaluation) -> str:
    rows: list[Sequence[Any]] = [("metric", "before", "after", "95 %", "pictures", "")]
    for name, metric in evaluation.metrics.items():
        known = named(name)
        before, after = written(name, metric.before), written(name, metric.value)
        meaning = f"{known.meaning} ({known.better} is better)" if known.better else known.meaning
        rows.append(
            (known.title, before, after, interval(name, metric), metric.count or "", meaning)
        )
    return _table(rows)


def _attacks(attacks: Sequence[AttackResult]) -> str:
    head = ("attack", "success", "95 %", "by seed", "plain prompt", "original", "floor", "budget")
    rows: list[Sequence[Any]] = [head]
    for one in attacks:
        by_seed = ", ".join(f"{value:.0%}" for value in one.by_seed)
        floor = "" if one.floor is None else f"{one.floor.value:.0%}"
        success, bounds = f"{one.success.value:.0%}", interval("ua", one.success)
        cells = (one.name, success, bounds, by_seed, f"{one.unattacked:.0%}")
        rows.append((*cells, f"{one.original:.0%}", floor, budget(one)))
    return _table(rows)


def budget(one: AttackResult) -> str:
    """What an attack spent."""
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in one.budget.items())


def _table(rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _cell(value: Any) -> str:
    return _plain(shown(value)).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text that a page made of the Markdown does not take for a tag."""
    return text.replace("<", "&lt;")
