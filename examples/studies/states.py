"""Study of the recording: how few pictures suffice, and can that be told while they are drawn?

    python -m examples.studies.states --output runs/states.jsonl

trains with kl and the closed-form start on the first 4, 8, 16, 32, ... of 96 recorded pictures of
the anchor and on three times as many to retain, and asks `training.agreement` at each of these
counts whether the two halves of what is there agree. Pictures are judged as in
`bench.judged`; "left" and "drift" are the held-out errors of `held_out.Left`, which are far less
noisy. Steps 0 are the start alone. With `--texts` the closed form is given the texts of all 96 and
288 pictures, as the library does, without it those of the first ones alone. An interrupted study
goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import harmonic_mean
from typing import Annotated, Any
from unittest import mock

import typer

from diffusers_fdu import FDUnlearner
from diffusers_fdu.config import RETAIN_PER_TRAJECTORY
from diffusers_fdu.data.replay_buffer import Halves, ReplayBuffer
from diffusers_fdu.data.rollout import Recording, Rollout, Run
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.settings import Settings
from diffusers_fdu.training.agreement import Agreement

from .bench import RUNS, Results, concept, judged, line
from .held_out import HeldOut

ANCHORS = {"dog": "cat", "blob": "noto", "banana": "carrot", "fluent": "twitter"}
MOST = 96
COUNTS = (4, 8, 16, 32, 64, 96)
STEPS = (100, 20, 5, 0)
TINY = 1e-9  # a learning rate that leaves the start as it is
KEY = ("target", "seed", "count", "texts", "steps")


class Prefixes:
    """What had been recorded when so many pictures of the anchor had been drawn.

    Args:
        worker: records.
        target: what to forget.
        anchor: what takes its place.
    """

    def __init__(self, worker: FDUnlearner, target: str, anchor: str) -> None:
        sizes: list[tuple[int, int]] = []
        with _watched(sizes):
            self.whole = worker.record(concept(target, anchor))
        # Of each state: which picture it is of, those to retain counted from the anchors' on.
        self._pictures: list[int] = []
        drawn = 0
        for pictures, states in sizes:
            self._pictures += [drawn + i % pictures for i in range(states)]
            drawn += pictures
        if len(self._pictures) != len(self.whole.timesteps):
            raise RuntimeError("cannot tell which picture a state is of")

    def is_within(self, state: int, count: int) -> bool:
        """Whether a state is of the first so many pictures, or of those to retain beside them."""
        picture = self._pictures[state]
        if picture < MOST:
            return picture < count
        return picture - MOST < RETAIN_PER_TRAJECTORY * count

    def first(self, count: int, texts: str = "all") -> ReplayBuffer:
        """The rows of so many pictures of the anchor, and of those to retain.

        Args:
            count: of pictures.
            texts: for the closed form: "all", or their "own" alone.
        """
        state = self.whole.state_dict()
        state["_rows"] = {
            role: [row for row in rows if self.is_within(row[0], count)]
            for role, rows in state["_rows"].items()
        }
        state["about"] = {**state["about"], "trajectories": count}
        if texts == "own":
            unlearn, retain = (state["_rows"][role] for role in ("unlearn", "retain"))
            text_of = {row[2]: row[1] for row in retain}  # by prediction
            pairs = [(row[1], text_of[row[2]]) for row in unlearn]
            state["pairs"] = list(dict.fromkeys(pairs))
            state["kept_texts"] = list(dict.fromkeys(row[1] for row in retain))
        return ReplayBuffer.from_state_dict(state)

    def halves(self, buffer: ReplayBuffer, count: int) -> Halves:
        """Rows to unlearn of the first half of these pictures, and of the second."""
        halves: Halves = [], []
        for i, entry in enumerate(buffer.entries("unlearn")):
            halves[not self.is_within(entry.state, count // 2)].append(("unlearn", i))
        return halves


@contextmanager
def _watched(sizes: list[tuple[int, int]]) -> Iterator[None]:
    """Note how many pictures every group has, and how many states."""
    draw = Rollout.group

    def watched(self: Rollout, runs: Sequence[Run], steps: int, number: int) -> Recording:
        drawn = draw(self, runs, steps, number)
        sizes.append((len(runs), len(drawn.buffer.state_dict()["_states"][self.time])))
        return drawn

    with mock.patch.object(Rollout, "group", watched):
        yield


class Study:
    """Measures what is not in the file yet.

    Args:
        results: rows so far.
        judges: the numbers of steps after which pictures are judged.
    """

    def __init__(self, results: Results, judges: Sequence[int]) -> None:
        self.results, self.judges = results, judges
        self._place: tuple[str, int] | None = None

    def check(self, target: str, seed: int, count: int) -> None:
        """What the rule says at this count."""
        key = {"target": target, "seed": seed, "count": count, "kind": "check"}
        if self.results.find(**key) is None:
            self._settle(target, seed)
            buffer = self.prefixes.first(count)
            worker = self._worker(seed, count)
            settings = Settings(worker.config, worker.data, worker.performance)
            agreement = Agreement(worker.pipe, worker.model, settings)
            cosine = agreement.cosine(buffer, self.prefixes.halves(buffer, count))
            self.results.add({**key, "cosine": cosine})

    def train(self, target: str, seed: int, count: int, steps: int, texts: str = "own") -> None:
        """What a training on so many pictures reaches; texts: those of its closed form."""
        judges = steps in self.judges
        key: dict[str, Any] = {"target": target, "seed": seed, "count": count, "steps": steps}
        key |= {"texts": texts, "kind": "training", "judged": judges}
        if self.results.find(**key) is not None:
            return
        self._settle(target, seed)
        less = {"steps": steps} if steps else {"steps": 1, "learning_rate": TINY}
        worker = self._worker(seed, count, **less)
        own = concept(target, ANCHORS[target])
        worker.unlearn(own, f="kl", buffer=self.prefixes.first(count, texts))
        left = self.held(worker.model)
        figures: dict[str, float] = {}
        if judges:
            found = judged(worker.pipe, target)
            figures = {"ua": found.ua, "ira": found.ira, "cra": found.cra}
            figures["harmonic"] = harmonic_mean(figures.values())
        train = worker.recipe["seconds"]["train"]
        self.results.add({**key, **figures, **left._asdict(), "train": train})

    def _settle(self, target: str, seed: int) -> None:
        """Record, unless it was the last that was recorded."""
        if self._place != (target, seed):
            self.prefixes = Prefixes(self._worker(seed, MOST), target, ANCHORS[target])
            self.held = HeldOut(load_emoji_pipeline(), concept(target, ANCHORS[target]))
            self._place = target, seed

    def _worker(self, seed: int, count: int, **options: Any) -> FDUnlearner:
        pipe = load_emoji_pipeline()
        return FDUnlearner(pipe, RUNS, progress=False, seed=seed, trajectories=count, **options)


def trainings(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each training; of one that was judged, too, that one alone."""
    columns = ("ua", "ira", "cra", "harmonic", "distance", "drift")
    names = ["target", "seed", "pictures", "texts", "steps", "UA", "IRA", "CRA", "harmonic"]
    lines = [line([*names, "left", "drift", "train s"]), "|---" * 12 + "|"]
    found = {}
    for row in sorted(rows, key=lambda row: row.get("judged", False)):
        if row["kind"] == "training":
            found[tuple(row[k] for k in KEY)] = row
    for key, row in sorted(found.items(), key=lambda item: (*item[0][:2], -item[0][4], item[0])):
        figures = [f"{row[c]:.3f}" if c in row else "" for c in columns]
        lines.append(line([*key, *figures, f"{row['train']:.0f}"]))
    return "\n".join(lines)


def checks(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each check."""
    own = [row for row in rows if row["kind"] == "check"]
    columns = [c for c in own[0] if c not in (*KEY, "kind")] if own else []
    lines = [line(["target", "seed", "pictures", *columns]), "|---" * (3 + len(columns)) + "|"]
    for row in sorted(own, key=lambda row: (row["target"], row["seed"], row["count"])):
        place = [row[k] for k in ("target", "seed", "count")]
        lines.append(line([*place, *(f"{row[c]:.3f}" for c in columns)]))
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/states.jsonl"),
    target: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    count: Annotated[list[int] | None, typer.Option(help="Of pictures; repeatable.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="0: none; repeatable.")] = None,
    judge: Annotated[list[int] | None, typer.Option(help="Judge after; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeatable.")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="All of them for the start.")] = False,
    only_print: Annotated[bool, typer.Option("--print", help="Measure nothing.")] = False,
) -> None:
    """Measure, and print the tables."""
    results = Results(output)
    study = Study(results, judge or STEPS)
    places = [(one, number) for number in seed or (0,) for one in target or ANCHORS]
    for one, number in [] if only_print else places:
        for pictures in count or COUNTS:
            study.check(one, number, pictures)
        for most in steps or STEPS:
            for pictures in count or COUNTS:
                study.train(one, number, pictures, most, "all" if texts else "own")
    print(trainings(results.rows), checks(results.rows), sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
