"""Protocols: which pictures are drawn, how, and how many, as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from ..data.templates import fill
from ..settings import check_names
from .images import Request
from .prompt_grid import PromptGrid

OPTIONS = ("seeds", "num_inference_steps", "guidance_scale", "extra", "metrics")
FIRST_SEED = 1000  # of the pictures where a publication names no seeds
QUICK_TARGET, QUICK_OTHERS, QUICK_SYNONYMS = 32, 62, 8


@dataclass(frozen=True)
class UnlearningTask:
    """What is to be forgotten, on a prompt grid: targets of one domain.

    Anchors are the words that take the targets' place, "" where there are none. Neighbours are
    names that are close to a target, by default some of the grid's.
    """

    prompt_grid: PromptGrid
    targets: Sequence[str]
    domain: str
    anchors: Sequence[str] = ()
    neighbours: Sequence[str] = ()

    @property
    def others(self) -> list[str]:
        """The grid's names of the targets' domain, without the targets."""
        return self.prompt_grid.others(self.domain, self.targets)


@dataclass(frozen=True)
class Protocol:
    """How an evaluation is done.

    `source` is the publication that it follows, "" if it is ours, and `changed` names the options
    that are not as published. `plan` lists the pictures to draw for a task. `seeds` are those of
    one prompt's pictures, a guidance scale of None is the pipeline's own, and `extra` has further
    arguments of the runs, for pipelines that take them. `metrics` are some of "accuracy", "clip",
    "kid", "fid" and "drift".
    """

    name: str
    source: str
    plan: Callable[[Protocol, UnlearningTask], list[Request]]
    seeds: Sequence[int] = tuple(range(FIRST_SEED, FIRST_SEED + 200))
    num_inference_steps: int = 50
    guidance_scale: float | None = 7.5
    extra: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] = ("accuracy",)
    changed: Sequence[str] = ()

    def requests(self, task: UnlearningTask) -> list[Request]:
        """The pictures to draw."""
        return self.plan(self, task)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the pipeline's runs."""
        names = ("num_inference_steps", "guidance_scale")
        return {**{name: getattr(self, name) for name in names}, **self.extra}

    @property
    def about(self) -> str:
        """The protocol in words."""
        scale = self.guidance_scale
        guidance = "the pipeline's own guidance" if scale is None else f"guidance {scale:g}"
        text = f"{self.name}: {self.num_inference_steps} steps, {guidance}"
        text += f", after {self.source}" if self.source else ""
        return f"{text}; not as published: {', '.join(self.changed)}" if self.changed else text


def resolve_protocol(protocol: str | Protocol = "quick", **options: Any) -> Protocol:
    """A protocol, or the one of that name, with those of its fields changed that are not None.

    ValueError for an unknown name or bad value, TypeError for an unknown option.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {protocol!r}: choose {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[protocol]
    check_names(options, OPTIONS)
    options = {key: value for key, value in options.items() if value is not None}
    if "seeds" in options and not options["seeds"]:
        raise ValueError("seeds must name at least one")
    steps = options.get("num_inference_steps", 1)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps!r}")
    other = replace(protocol, **options)
    differing = [key for key in options if getattr(other, key) != getattr(protocol, key)]
    changed = tuple(dict.fromkeys([*protocol.changed, *differing])) if protocol.source else ()
    return replace(other, changed=changed)


def _every_cell(protocol: Protocol, task: UnlearningTask) -> list[Request]:
    """UnlearnCanvas: every object in every style, with every seed."""
    grid = task.prompt_grid
    requests: list[Request] = []
    for name in (*task.targets, *task.others):
        part = "target" if name in task.targets else "retain"
        for rest in grid.across(task.domain):
            cell = grid.cell(task.domain, name, rest)
            requests += [Request(grid.prompt(cell), seed, part, cell) for seed in protocol.seeds]
    return requests


def _by_name(protocol: Protocol, task: UnlearningTask) -> list[Request]:
    """MACE: as many pictures of the plain prompt for every name and synonym."""
    grid = task.prompt_grid
    rows: list[tuple[str, str, str]] = []
    for target in task.targets:
        rows.append((target, target, "target"))
        rows += [(word, target, "synonyms") for word in grid.synonyms.get(target, ())]
    rows += [(name, name, "retain") for name in task.others]
    plainest = grid.alone[task.domain][0]
    return [
        Request(fill(plainest, word), seed, part, {task.domain: name})
        for word, name, part in rows
        for seed in protocol.seeds
    ]


def _neighbourhood(protocol: Protocol, task: UnlearningTask) -> list[Request]:
    """Concept ablation: the target and its neighbours in several prompts, in turn."""
    grid, domain = task.prompt_grid, task.domain
    near = task.neighbours or grid.others(domain, (*task.targets, *task.anchors))[:4]
    rows = chain(
        ((name, "target") for name in task.targets),
        ((name, "anchor") for name in dict.fromkeys(task.anchors) if name),
        ((name, "retain") for name in near),
    )
    templates = grid.alone[domain]
    return [
        Request(fill(templates[i % len(templates)], name), seed, part, {domain: name})
        for name, part in rows
        for i, seed in enumerate(protocol.seeds)
    ]


def _quick(protocol: Protocol, task: UnlearningTask) -> list[Request]:
    """Some of each, every picture with a seed of its own."""
    grid, domain = task.prompt_grid, task.domain
    around = grid.across(domain)
    requests: list[Request] = []

    def add(word: str, name: str, part: str, count: int, shift: int = 0) -> None:
        for i in range(count):
            rest = around[(i + shift) % len(around)]
            prompt = grid.prompt(grid.cell(domain, word, rest))
            seed = protocol.seeds[0] + len(requests)
            requests.append(Request(prompt, seed, part, grid.cell(domain, name, rest)))

    for target in task.targets:
        add(target, target, "target", max(1, QUICK_TARGET // len(task.targets)))
        for word in grid.synonyms.get(target, ())[:2]:
            add(word, target, "synonyms", QUICK_SYNONYMS)
    count = max(2, QUICK_OTHERS // len(task.others))
    for k, name in enumerate(task.others):
        add(name, name, "retain", count, count * k)
    return requests


_PROTOCOLS = (
    Protocol(
        "unlearncanvas",
        "UnlearnCanvas (arXiv 2402.11846)",
        _every_cell,
        seeds=(188, 288, 588, 688, 888),
        num_inference_steps=100,
        guidance_scale=9.0,
        extra={"eta": 0.0},
        metrics=("accuracy", "fid"),
    ),
    Protocol(
        "concept-ablation",
        "concept ablation (arXiv 2303.13516)",
        _neighbourhood,
        guidance_scale=6.0,
        extra={"eta": 1.0},
        metrics=("accuracy", "clip", "kid"),
    ),
    Protocol("mace", "MACE (arXiv 2403.06135)", _by_name, metrics=("accuracy", "clip")),
    Protocol(
        "quick",
        "",
        _quick,
        seeds=(FIRST_SEED,),
        num_inference_steps=15,
        guidance_scale=None,
        metrics=("accuracy", "clip", "kid", "drift"),
    ),
)
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _PROTOCOLS}
"""Protocols by name. Their settings are those of the released code where there is some."""
