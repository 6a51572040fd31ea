"""Study of the text's width: does a learning rate of 0.64 / width hold beyond 128?

    python -m examples.studies.width --output runs/width.jsonl

The embedded model's text is 128 wide, Stable Diffusion's 768 to 2048. Here it is made wider
without a change to what the model computes: a token's vector c becomes

    c' = sqrt(D / 128) (sqrt(1 - share) Q c + sqrt(share) n)

with Q (D, 128) of orthonormal columns, so that a coordinate has the size it has after a layer
norm, and every key and value weight W becomes W Q^T / sqrt((1 - share) D / 128). n is a random
vector of the token in the complement of Q, of the size of c: what a wide encoder knows and these
layers do not read. The pictures are the same, which is checked.

kl, 48 trajectories unless `--trajectories` says more, one recording for all rates. "left" and
"drift" are the held-out errors of `held_out.Left`. Rates are multiples of 0.64 / D; with `--split`
the rate of B, the LoRA's second matrix, is that of width 128 whatever D is. An interrupted study
goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import harmonic_mean
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from torch import Tensor, nn

from diffusers_fdu import FDUnlearner
from diffusers_fdu.adapters.target_modules import target_modules
from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.evaluation.emoji import draw
from diffusers_fdu.training import optim
from diffusers_fdu.training.resolve import RATE_TIMES_WIDTH

from .bench import RUNS, Results, concept, judged, line
from .held_out import HeldOut

ANCHORS = {"blob": "noto", "dog": "cat"}
WIDTHS = (128, 768, 2048)
NARROW = 128
MULTIPLES = (1.0, 4.0, 0.25)
TINY = 1e-9  # a learning rate that leaves the start as it is
CHECKED = ("a dog emoji in blob style", "a banana")
KEY = ("target", "width", "share", "init", "multiple", "steps", "batch", "split", "seed")


class WideTextEncoder(nn.Module):
    """A text encoder's last hidden states in a wider space.

    Args:
        encoder: of the embedded model.
        basis: (D, 128), how its vectors lie in the wider space.
        others: (vocabulary, D), what is added for each token.
    """

    def __init__(self, encoder: Any, basis: Tensor, others: Tensor) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        self.register_buffer("basis", basis)
        self.register_buffer("others", others)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.encoder.dtype

    @property
    def device(self) -> torch.device:
        """Of its weights."""
        return self.encoder.device

    def get_input_embeddings(self) -> nn.Module:
        """The narrow table."""
        return self.encoder.get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        """Hidden states, (B, L, D)."""
        hidden = self.encoder(input_ids, attention_mask=attention_mask)[0]
        return (hidden @ self.basis.T + self.others[input_ids],)


@torch.no_grad()
def widened(pipe: Any, width: int, share: float = 0.0, seed: int = 0) -> Any:
    """The same pipe, its text as wide as that; 128 leaves it alone.

    Args:
        pipe: the embedded model.
        width: D.
        share: of a vector's energy, what the layers do not read.
        seed: of Q and of what is added.
    """
    if width == NARROW:
        return pipe
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(square).Q.float()
    own, rest = directions[:, :NARROW], directions[:, NARROW:]
    scale = math.sqrt(width / NARROW)
    table = torch.randn(len(pipe.tokenizer), width - NARROW, generator=generator)
    table *= math.sqrt(NARROW / (width - NARROW))  # a vector has 128 coordinates of size 1
    others = scale * math.sqrt(share) * table @ rest.T
    read = scale * math.sqrt(1 - share)
    encoder = WideTextEncoder(pipe.text_encoder, read * own, others)
    pipe.register_modules(text_encoder=encoder)
    for name in names_of(pipe.unet):
        layer = pipe.unet.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight @ own.T / read)
        layer.in_features = width
    pipe.unet.register_to_config(cross_attention_dim=width)
    return pipe


def names_of(model: nn.Module) -> list[str]:
    """The layers that read the text."""
    ends = tuple(target_modules(model, None))
    return [name for name, _ in model.named_modules() if name.endswith(ends)]


def check_same(pipe: Any) -> None:
    """Refuse a wider model that draws other pictures.

    Raises:
        RuntimeError: if one differs by more than rounding.
    """
    drawn = [draw(one, CHECKED, (0, 1), 8) for one in (load_emoji_pipeline(), pipe)]
    for before, after in zip(*drawn, strict=True):
        most = np.abs(np.asarray(before, int) - np.asarray(after, int)).max()
        if most > 1:
            raise RuntimeError(f"a picture of the wider model differs by {most} of 255")


class _Split(torch.optim.AdamW):
    """AdamW with a rate of their own for weights that the width has nothing to do with.

    A step of Adam moves every weight by the rate, so A c by rate times D, but B (A c) by rate
    times rank: with one rate in proportion to 1 / D the larger D, the slower B. (LoRA+, Hayou et
    al., arXiv 2402.12354, finds the same.)
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, ratio: float) -> None:
        inner = [p for p in parameters if p.shape[0] < p.shape[1]]  # A: (rank, D)
        outer = [p for p in parameters if p.shape[0] >= p.shape[1]]
        self.ratio = ratio
        super().__init__([{"params": inner}, {"params": outer}], rate, weight_decay=0.0)

    def step(self, closure: Any = None) -> Any:
        """One step; the loop has set one rate for all."""
        self.param_groups[1]["lr"] *= self.ratio
        return super().step(closure)


@contextmanager
def split_rates(ratio: float) -> Iterator[None]:
    """Train with a rate of B that is so many times that of A."""
    with mock.patch.object(optim, "make_optimizer", lambda p, rate, kind: _Split(p, rate, ratio)):
        yield


class Study:
    """Trains and judges what is not in the file yet.

    Args:
        results: rows so far.
        trajectories: recorded for each target and width.
        judges: whether pictures are drawn and judged.
    """

    def __init__(self, results: Results, trajectories: int, judges: bool) -> None:
        self.results, self.trajectories, self.judges = results, trajectories, judges
        self._recorded: dict[tuple, tuple[ReplayBuffer, HeldOut]] = {}

    def run(self, job: dict[str, Any]) -> None:
        """One row."""
        key = {**job, "trajectories": self.trajectories, "judged": self.judges}
        if self.results.find(**key) is not None:
            return
        target, width, share, init, multiple, steps, batch, split, seed = (job[k] for k in KEY)
        own = concept(target, ANCHORS[target])
        pipe = widened(load_emoji_pipeline(), width, share)
        rate = multiple * RATE_TIMES_WIDTH / width if multiple else TINY
        options: dict[str, Any] = {"trajectories": self.trajectories, "seed": seed}
        options |= {"init": init, "steps": steps, "batch_size": batch, "learning_rate": rate}
        worker = FDUnlearner(pipe, RUNS, progress=False, **options)
        place = target, width, share, seed
        if place not in self._recorded:
            check_same(pipe)
            self._recorded[place] = worker.record(own), HeldOut(pipe, own)
        buffer, held = self._recorded[place]
        with split_rates(width / NARROW if split else 1.0):
            worker.unlearn(own, f="kl", buffer=buffer)
        left = held(worker.model)
        self.results.add(
            {
                **key,
                **(counted(pipe, target) if self.judges else {}),
                "left": left.distance,
                "drift": left.drift,
                "done": len(worker.history),
                "train": worker.recipe["seconds"]["train"],
            }
        )


def counted(pipe: Any, target: str) -> dict[str, float]:
    """UA, IRA, CRA and their harmonic mean."""
    found = judged(pipe, target)
    figures = {"ua": found.ua, "ira": found.ira, "cra": found.cra}
    return {**figures, "harmonic": harmonic_mean(figures.values())}


def jobs(
    targets: Sequence[str], widths: Sequence[int], multiples: Sequence[float], **fixed: Any
) -> list[dict[str, Any]]:
    """Everything to measure, what shares a recording together."""
    found = []
    for target in targets:
        for width in widths:
            starts = [("auto", 0.0, 1)]
            steps = fixed["steps"]
            starts += [(init, m, steps) for m in multiples for init in ("auto", "lora")]
            for init, multiple, count in starts:
                job = {"target": target, "width": width, "init": init, "multiple": multiple}
                found.append({**fixed, **job, "steps": count})
    return found


def table(results: Results) -> str:
    """One line for each row of the file."""
    columns = ("ua", "ira", "cra", "harmonic", "left", "drift")
    lines = [line([*KEY, *columns, "done", "train s"]), "|---" * (len(KEY) + 8) + "|"]
    order = sorted(results.rows, key=lambda row: [row[k] for k in KEY])
    for row in order:
        figures = [f"{row[c]:.3f}" if c in row else "" for c in columns]
        lines.append(line([*(row[k] for k in KEY), *figures, row["done"], f"{row['train']:.0f}"]))
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/width.jsonl"),
    target: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    width: Annotated[list[int] | None, typer.Option(help="Of the text; repeatable.")] = None,
    multiple: Annotated[list[float] | None, typer.Option(help="Of 0.64 / D; repeatable.")] = None,
    steps: Annotated[int, typer.Option(help="At most.")] = 100,
    batch: Annotated[int, typer.Option(help="Rows of each role in a step.")] = 16,
    share: Annotated[float, typer.Option(help="Of energy that is not read.")] = 0.0,
    split: Annotated[bool, typer.Option("--split", help="B at the rate of width 128.")] = False,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    trajectories: Annotated[int, typer.Option(help="Recorded.")] = 48,
    judges: Annotated[bool, typer.Option("--judge/--no-judge", help="Count pictures.")] = True,
    only_print: Annotated[bool, typer.Option("--print", help="Measure nothing.")] = False,
) -> None:
    """Measure, and print the table."""
    results = Results(output)
    study = Study(results, trajectories, judges)
    fixed = {"steps": steps, "share": share, "split": split, "seed": seed, "batch": batch}
    where = target or tuple(ANCHORS), width or WIDTHS, multiple or MULTIPLES
    for job in [] if only_print else jobs(*where, **fixed):
        study.run(job)
    print(table(results))


if __name__ == "__main__":
    typer.run(main)
