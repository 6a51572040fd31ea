"""Many concepts, an adapter for each: lists that processes share and that go on after a crash."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..adapters.recipe import RECIPE_NAME
from ..data.concepts import Anchor, Concept, NegativeGuidance
from ..utils.io import as_json, read_json

FIELDS = ("target", "anchor", "negative_guidance", "kind", "prompts", "aliases", "name")


@dataclass(frozen=True)
class Job:
    """One concept of a list.

    Args:
        name: of its folder.
        concept: what is to be forgotten.
    """

    name: str
    concept: Concept

    def is_done(self, folder: Path, f: str) -> bool:
        """Whether its adapter is in a folder of adapters.

        Raises:
            ValueError: if another concept's is there, or one trained with another f.
        """
        path = folder / self.name / RECIPE_NAME  # written last
        if not path.exists():
            return False
        facts = read_json(path)
        wanted = {"concepts": as_json([vars(self.concept)]), "f": f}
        for name, value in wanted.items():
            if facts.get(name) != value:
                raise ValueError(
                    f"{str(path.parent)!r} holds an adapter with {name}={facts.get(name)!r}, and "
                    f"{value!r} is wanted: use another folder, or remove it"
                )
        return True


def read_jobs(path: str | Path) -> list[Job]:
    """The concepts of a YAML file.

        - {target: Snoopy, anchor: dog}
        - {target: Van Gogh, anchor: painting, kind: style}
        - {target: Garfield, negative_guidance: 1.0, name: no-garfield}

    Args:
        path: the file: a list of concepts, each with a `target` and any of the other `FIELDS`.

    Raises:
        ValueError: for a file that is no such list, with the entry.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read concepts from {str(path)!r}: {reason}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{str(path)!r} is no list of concepts such as '- {{target: Snoopy}}'")
    jobs = [_job(entry, number) for number, entry in enumerate(entries, 1)]
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two concepts are named {name!r}: give one of them a `name`")
    return jobs


def _job(entry: Any, number: int) -> Job:
    if not isinstance(entry, dict) or not isinstance(entry.get("target"), str):
        raise ValueError(f"concept {number} has no target: {entry!r}")
    for key in entry:
        if key not in FIELDS:
            raise ValueError(f"concept {number}: unknown {key!r}, choose {', '.join(FIELDS)}")
    if "anchor" in entry and "negative_guidance" in entry:
        raise ValueError(f"concept {number} has both an anchor and negative_guidance")
    anchor: Anchor = entry.get("anchor")
    if "negative_guidance" in entry:
        anchor = NegativeGuidance(entry["negative_guidance"])
    try:
        concept = Concept(
            entry["target"],
            anchor,
            entry.get("kind", "object"),
            entry.get("prompts"),
            entry.get("aliases", ()),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"concept {number}: {error}") from error
    name = entry.get("name", re.sub(r"[^A-Za-z0-9]+", "-", entry["target"]).strip("-").lower())
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"concept {number}: name {name!r} must be of letters, digits, '_', '-'")
    return Job(name, concept)


def own_jobs(jobs: Sequence[Job], folder: Path, f: str, rank: int, count: int) -> list[Job]:
    """What one process of several has to do: every `count`-th job, without those that are done."""
    return [job for job in jobs[rank::count] if not job.is_done(folder, f)]
