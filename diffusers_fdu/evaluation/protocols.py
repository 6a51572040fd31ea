"""Protocols: which pictures are drawn, how, and how many, as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..data.templates import fill
from .prompt_grid import PromptGrid
from .request import Request

FIRST = 1000
"""Seed of the first picture where a protocol names none."""
QUICK_TARGET, QUICK_OTHERS, QUICK_SYNONYMS = 32, 62, 8


@dataclass(frozen=True)
class UnlearningTask:
    """What is to be forgotten, on a canvas.

    Args:
        canvas: what there is besides.
        targets: names of the concepts, all of one domain.
        domain: theirs.
        anchors: what takes their place, as words; none where there is none.
        neighbours: names that are close to a target; none: the canvas's own.
    """

    canvas: PromptGrid
    targets: Sequence[str]
    domain: str
    anchors: Sequence[str] = ()
    neighbours: Sequence[str] = ()


Plan = Callable[["Protocol", UnlearningTask], list[Request]]


@dataclass(frozen=True)
class Protocol:
    """How an evaluation is done.

    Args:
        name: of the protocol.
        source: who published it; "": it is ours.
        plan: from what is asked to the pictures.
        seeds: of the pictures of one prompt.
        num_inference_steps: of a run.
        guidance_scale: of a run; None: the pipeline's own.
        extra: further arguments of the pipeline's runs that it takes.
        metrics: that are made of the pictures: "accuracy", "clip", "kid", "fid", "drift".
        changed: options that are not as published.
    """

    name: str
    source: str
    plan: Plan
    seeds: Sequence[int]
    num_inference_steps: int
    guidance_scale: float | None
    extra: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] = ("accuracy",)
    changed: Sequence[str] = ()

    def requests(self, asked: UnlearningTask) -> list[Request]:
        """The pictures to draw."""
        return self.plan(self, asked)

    @property
    def about(self) -> str:
        """In words."""
        scale = self.guidance_scale
        guidance = "the pipeline's own guidance" if scale is None else f"guidance {scale:g}"
        text = f"{self.name}: {self.num_inference_steps} steps, {guidance}"
        text += f", after {self.source}" if self.source else ""
        return f"{text}; not as published: {', '.join(self.changed)}" if self.changed else text


def protocol(name: str | Protocol = "quick", **options: Any) -> Protocol:
    """A protocol, some of its options changed.

    Args:
        name: one of `PROTOCOLS`, or a protocol.
        **options: "seeds", "num_inference_steps", "guidance_scale" or "extra"; None: as it is.

    Raises:
        ValueError: for an unknown name or bad value.
        TypeError: for an unknown option.
    """
    if isinstance(name, str):
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}: choose {', '.join(PROTOCOLS)}")
        name = PROTOCOLS[name]
    known = {f.name for f in fields(Protocol)} - {"name", "source", "plan", "changed"}
    for option in options:
        if option not in known:
            raise TypeError(f"unknown option {option!r}: choose {', '.join(sorted(known))}")
    given = {key: value for key, value in options.items() if value is not None}
    if "seeds" in given and not given["seeds"]:
        raise ValueError("seeds must name at least one")
    steps = given.get("num_inference_steps", 1)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps!r}")
    differ = [key for key, value in given.items() if value != getattr(name, key)]
    changed = tuple(dict.fromkeys([*name.changed, *differ])) if name.source else ()
    return replace(name, **given, changed=changed)


def _every_cell(own: Protocol, asked: UnlearningTask) -> list[Request]:
    """UnlearnCanvas: every object in every style, with every seed."""
    canvas = asked.canvas
    found: list[Request] = []
    names = [*asked.targets, *canvas.others(asked.domain, asked.targets)]
    for name in names:
        part = "target" if name in asked.targets else "retain"
        for rest in canvas.across(asked.domain):
            cell = canvas.cell(asked.domain, name, rest)
            found += [Request(canvas.prompt(cell), seed, part, cell) for seed in own.seeds]
    return found


def _by_name(own: Protocol, asked: UnlearningTask) -> list[Request]:
    """MACE: as many pictures of the plain prompt for every name and synonym."""
    canvas, domain = asked.canvas, asked.domain
    found: list[Request] = []
    plain = canvas.alone[domain][0]

    def add(word: str, name: str, part: str) -> None:
        prompt = fill(plain, word)
        found.extend(Request(prompt, seed, part, {domain: name}) for seed in own.seeds)

    for target in asked.targets:
        add(target, target, "target")
        for word in canvas.synonyms.get(target, ()):
            add(word, target, "synonyms")
    for name in canvas.others(domain, asked.targets):
        add(name, name, "retain")
    return found


def _neighbourhood(own: Protocol, asked: UnlearningTask) -> list[Request]:
    """Concept ablation: the target and its neighbours in several prompts, in turn."""
    canvas, domain = asked.canvas, asked.domain
    found: list[Request] = []
    near = asked.neighbours or canvas.others(domain, (*asked.targets, *asked.anchors))[:4]
    parts = [(name, "target") for name in asked.targets]
    parts += [(name, "anchor") for name in dict.fromkeys(asked.anchors) if name]
    parts += [(name, "retain") for name in near]
    templates = canvas.alone[domain]
    for name, part in parts:
        for i, seed in enumerate(own.seeds):
            prompt = fill(templates[i % len(templates)], name)
            found.append(Request(prompt, seed, part, {domain: name}))
    return found


def _quick(own: Protocol, asked: UnlearningTask) -> list[Request]:
    """Some of each, every picture with a seed of its own."""
    canvas, domain = asked.canvas, asked.domain
    found: list[Request] = []
    around = canvas.across(domain)

    def add(word: str, name: str, part: str, count: int, shift: int = 0) -> None:
        for i in range(count):
            rest = around[(i + shift) % len(around)]
            prompt = canvas.prompt(canvas.cell(domain, word, rest))
            expected = canvas.cell(domain, name, rest)
            found.append(Request(prompt, own.seeds[0] + len(found), part, expected))

    others = canvas.others(domain, asked.targets)
    for target in asked.targets:
        add(target, target, "target", max(1, QUICK_TARGET // len(asked.targets)))
        for word in canvas.synonyms.get(target, ())[:2]:
            add(word, target, "synonyms", QUICK_SYNONYMS)
    count = max(2, QUICK_OTHERS // len(others))
    for k, name in enumerate(others):
        add(name, name, "retain", count, count * k)
    return found


PROTOCOLS: Mapping[str, Protocol] = {
    "unlearncanvas": Protocol(
        "unlearncanvas",
        "UnlearnCanvas (arXiv 2402.11846)",
        _every_cell,
        (188, 288, 588, 688, 888),
        100,
        9.0,
        {"eta": 0.0},
        ("accuracy", "fid"),
    ),
    "concept-ablation": Protocol(
        "concept-ablation",
        "concept ablation (arXiv 2303.13516)",
        _neighbourhood,
        tuple(range(FIRST, FIRST + 200)),
        50,
        6.0,
        {"eta": 1.0},
        ("accuracy", "clip", "kid"),
    ),
    "mace": Protocol(
        "mace",
        "MACE (arXiv 2403.06135)",
        _by_name,
        tuple(range(FIRST, FIRST + 200)),
        50,
        7.5,
        {},
        ("accuracy", "clip"),
    ),
    "quick": Protocol(
        "quick", "", _quick, (FIRST,), 15, None, {}, ("accuracy", "clip", "kid", "drift")
    ),
}
"""By name. Their settings are those of the released code where there is some."""
