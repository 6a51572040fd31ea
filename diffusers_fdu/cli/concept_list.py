"""Concepts as the command line is given them: by options, or by a YAML list."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.recipe import RECIPE_NAME
from ..data.concepts import Anchor, Concept, NegativeGuidance
from ..settings import check_names
from ..utils.io import as_json, read_json
from .options import read_yaml_file

DETAILS = ("aliases", "prompts", "negative_guidance")
FIELDS = ("target", "anchor", "kind", "name", *DETAILS)


@dataclass(frozen=True)
class ListedConcept:
    """A concept to forget, and the name of the folder that its adapter is written to."""

    name: str
    concept: Concept

    def is_done(self, folder: Path, f: str) -> bool:
        """Whether its adapter is in a folder of adapters; a ValueError if that differs."""
        path = folder / self.name / RECIPE_NAME  # written last, so the adapter is whole
        if not path.exists():
            return False
        recipe = read_json(path)
        for key, value in (("concepts", as_json([vars(self.concept)])), ("f", f)):
            if recipe.get(key) != value:
                raise ValueError(
                    f"{str(path.parent)!r} holds an adapter with {key}={recipe.get(key)!r}, and "
                    f"{value!r} is wanted: use another folder, or remove it"
                )
        return True


def read_concepts(path: Path) -> list[ListedConcept]:
    """Read a YAML list of concepts, each with a `target` and any of the other `FIELDS`.

    - {target: Snoopy, anchor: dog}
    - {target: Van Gogh, anchor: painting, kind: style}
    - {target: Garfield, negative_guidance: 1.0, name: no-garfield}
    """
    entries = read_yaml_file(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{str(path)!r} is no list of concepts such as '- {{target: Snoopy}}'")
    listed = []
    for number, entry in enumerate(entries, 1):
        try:
            listed.append(_listed(entry))
        except (TypeError, ValueError) as error:
            raise ValueError(f"concept {number}: {error}") from error
    names = [concept.name for concept in listed]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two concepts are named {name!r}: give one of them a `name`")
    return listed


def _listed(entry: Any) -> ListedConcept:
    if not isinstance(entry, dict) or not isinstance(entry.get("target"), str):
        raise ValueError(f"no target in {entry!r}")
    check_names(entry, FIELDS)
    name = entry.get("name", re.sub(r"[^A-Za-z0-9]+", "-", entry["target"]).strip("-").lower())
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"name {name!r} must be of letters, digits, '_', '-'")
    return ListedConcept(name, make_concept(entry))


def make_concept(entry: Mapping[str, Any]) -> Concept:
    """Make a concept of its `FIELDS`; a bad value raises a ValueError."""
    anchor: Anchor = entry.get("anchor")
    if entry.get("negative_guidance") is not None:
        if anchor is not None:
            raise ValueError("an anchor and negative_guidance do not go together: pass one")
        anchor = NegativeGuidance(entry["negative_guidance"])
    kind, prompts = entry.get("kind", "object"), entry.get("prompts")
    return Concept(entry["target"], anchor, kind, prompts, entry.get("aliases", ()))
