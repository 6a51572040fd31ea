"""Imports point one way, as the map says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusers_fdu"

ALLOWED = {
    "divergences": set(),
    "micro_batches": set(),
    "memory_trace": {"micro_batches"},
    "device_memory": set(),
    "auto_fit": {
        "config",
        "device_memory",
        "memory",
        "micro_batches",
        "offload",
        "performance",
        "recorder",
    },
    "agreement": {
        "targets",
        "adapters",
        "config",
        "loss",
        "micro_batches",
        "objective",
        "offload",
        "performance",
        "replay",
        "sampling",
    },
    "words": set(),
    "concepts": {"words"},
    "retain": {"concepts", "words"},
    "targets": set(),
    "adapters": {"offload", "targets"},
    "files": {"denoiser", "recipe"},
    "merging": {"adapters", "concepts", "files", "hub", "identity", "recipe", "unlearner", ""},
    "weights": {"adapters", "denoiser", "files", "hub", "offload"},
    "stacking": {"adapters", "denoiser", "weights"},
    "page": {"adapters", "denoiser", "stacking"},
    "measured": {"told"},
    "hub": {"adapters", "files", "measured", "recipe", "recorder", "told", "words"},
    "export": {"files", "hub", "recipe"},
    "fuse": {"adapters", "denoiser", "offload"},
    "info": {"export", "files", "hub", "measured", "told"},
    "told": set(),
    "identity": {"adapters", "denoiser"},
    "denoiser": set(),
    "offload": set(),
    "processes": set(),
    "checkpoint": {"recipe"},
    "values": set(),
    "layout": {"values"},
    "clock": set(),
    "replay": {"clock", "values"},
    "spline": set(),
    "kernels": set(),
    "fused": {"kernels"},
    "loss": {"divergences", "fused", "spline"},
    "recorder": {"micro_batches", "denoiser", "layout", "replay", "values"},
    "answers": {"micro_batches", "denoiser", "offload", "replay", "values"},
    "timesteps": set(),
    "renoise": {"clock", "replay", "timesteps"},
    "drawing": {
        "clock",
        "concepts",
        "denoiser",
        "layout",
        "recorder",
        "renoise",
        "replay",
        "values",
    },
    "trajectories": {
        "targets",
        "answers",
        "clock",
        "concepts",
        "denoiser",
        "drawing",
        "processes",
        "recorder",
        "renoise",
        "replay",
        "values",
    },  # fmt: skip
    "sampling": {"values", "offload", "processes", "replay", "timesteps"},
    "sharding": set(),
    "conjugates": {"divergences"},
    "variational": {"conjugates", "processes"},
    "objective": {
        "micro_batches",
        "replay",
        "answers",
        "loss",
        "sampling",
        "values",
        "variational",
    },
    "surgery": set(),
    "gradients": set(),
    "mining": {"adapters", "answers", "replay"},
    "recipe": {""},
    "performance": {"offload"},
    "alignment": set(),
    "truncated_svd": set(),
    "closed_form": {"micro_batches", "alignment", "offload", "replay", "truncated_svd", "values"},
    "tokens": {"recorder"},
    "slots": {"recorder", "tokens", "words"},
    "inversion": {"micro_batches", "answers", "offload", "recorder", "replay", "slots", "values"},
    "adversary": {
        "answers",
        "concepts",
        "inversion",
        "processes",
        "recorder",
        "replay",
        "slots",
        "trajectories",
    },  # fmt: skip
    "evaluation": {
        "adapters",
        "concepts",
        "denoiser",
        "identity",
        "intervals",
        "inversion",
        "measured",
        "processes",
        "recipe",
        "recorder",
        "replay",
        "slots",
        "tokens",
        "told",
        "trajectories",
        "values",
        "words",
    },  # fmt: skip
    "subjects": {"adapters", "concepts", "files", "hub", "measured", "unlearner", "weights"},
    "boards": {"concepts", "emoji", "evaluation", "hub"},
    "evaluate": {
        "adapters",
        "boards",
        "concepts",
        "evaluation",
        "processes",
        "recipe",
        "subjects",
        "unlearner",
    },  # fmt: skip
    "watching": {"boards", "concepts", "evaluation", "steps"},
    "refreshing": {
        "adversary",
        "config",
        "mining",
        "performance",
        "processes",
        "recorder",
        "replay",
        "steps",
    },  # fmt: skip
    "settling": {
        "adapters",
        "config",
        "conjugates",
        "divergences",
        "files",
        "hub",
        "loss",
        "targets",
        "weights",
    },  # fmt: skip
    "config": {
        "adversary",
        "drawing",
        "performance",
        "recorder",
        "retain",
        "timesteps",
        "variational",
    },
    "steps": set(),
    "train": {
        "micro_batches",
        "replay",
        "checkpoint",
        "config",
        "gradients",
        "objective",
        "performance",
        "sampling",
        "steps",
        "surgery",
    },  # fmt: skip,
    "choice": set(),
    "intervals": set(),
    "comparison": {"choice", "intervals", "recipe"},
    "retrain": {"adapters", "adversary", "concepts", "steps", "unlearner", "variational"},
    "compare": {
        "adapters",
        "answers",
        "comparison",
        "concepts",
        "config",
        "conjugates",
        "divergences",
        "identity",
        "recipe",
        "replay",
        "unlearner",
    },  # fmt: skip
    "plots": {"comparison", "divergences"},
    "recording": {
        "adapters",
        "adversary",
        "checkpoint",
        "concepts",
        "config",
        "denoiser",
        "identity",
        "processes",
        "recipe",
        "recorder",
        "replay",
        "retain",
        "trajectories",
        "words",
    },  # fmt: skip
    "training": {
        "adapters",
        "checkpoint",
        "closed_form",
        "config",
        "conjugates",
        "files",
        "identity",
        "loss",
        "objective",
        "offload",
        "processes",
        "performance",
        "recipe",
        "recorder",
        "refreshing",
        "replay",
        "sampling",
        "settling",
        "sharding",
        "steps",
        "train",
        "variational",
    },  # fmt: skip
    "memory": {
        "memory_trace",
        "targets",
        "adapters",
        "config",
        "denoiser",
        "identity",
        "offload",
        "performance",
        "recorder",
        "replay",
        "values",
    },  # fmt: skip
    "unlearner": {
        "agreement",
        "auto_fit",
        "offload",
        "recorder",
        "adapters",
        "checkpoint",
        "choice",
        "concepts",
        "config",
        "conjugates",
        "denoiser",
        "divergences",
        "files",
        "hub",
        "loss",
        "memory",
        "processes",
        "recipe",
        "recording",
        "replay",
        "settling",
        "targets",
        "steps",
        "training",
        "weights",
    },  # fmt: skip
    "tracking": {"recipe", "steps"},
    "jobs": {"concepts", "recipe"},
    "order": {
        "adapters",
        "concepts",
        "inputs",
        "jobs",
        "processes",
        "recipe",
        "tracking",
        "steps",
        "unlearner",
        "weights",
    },  # fmt: skip
    "emoji": set(),
    "demo": {
        "concepts",
        "config",
        "divergences",
        "emoji",
        "files",
        "intervals",
        "measured",
        "recipe",
        "unlearner",
    },  # fmt: skip
    "inputs": {"concepts", "emoji"},
    "cli": {
        "checkpoint",
        "choice",
        "compare",
        "concepts",
        "config",
        "demo",
        "divergences",
        "emoji",
        "evaluate",
        "evaluation",
        "files",
        "hub",
        "export",
        "info",
        "inputs",
        "jobs",
        "measured",
        "merging",
        "order",
        "page",
        "plots",
        "processes",
        "recipe",
        "stacking",
        "subjects",
        "told",
        "tracking",
    },  # fmt: skip
    "__main__": {"cli"},
    "": {
        "compare",
        "comparison",
        "concepts",
        "config",
        "conjugates",
        "divergences",
        "evaluate",
        "hub",
        "adversary",
        "export",
        "fuse",
        "info",
        "loss",
        "merging",
        "performance",
        "retrain",
        "stacking",
        "steps",
        "unlearner",
        "variational",
        "watching",
        "weights",
    },  # fmt: skip
}


def rooms() -> dict[str, list[Path]]:
    """Files by room; the package's own __init__ is the room ""."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        room = "" if parts == ("__init__",) else parts[0]
        found.setdefault(room, []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """Rooms that a file imports, from other rooms than its own."""
    package = ("diffusers_fdu", *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            names |= {(*module, alias.name) for alias in node.names}
    own = {name[1:] for name in names if name[0] == "diffusers_fdu"}
    known = set(rooms())
    return {name[0] if name and name[0] in known else "" for name in own}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_imports_point_one_way(room: str) -> None:
    assert room in ALLOWED, f"{room} is not on the map: add it, and what it may import"
    for path in rooms()[room]:
        extra = imported(path) - ALLOWED[room] - {room}
        assert not extra, f"{path.name} imports {extra}"


def test_the_map_has_no_circle() -> None:
    done: set[str] = set()
    left = {room: needs - {""} for room, needs in ALLOWED.items()}
    while left:
        free = [room for room, needs in left.items() if needs <= done]
        assert free, f"circle among {sorted(left)}"
        done |= set(free)
        for room in free:
            del left[room]
