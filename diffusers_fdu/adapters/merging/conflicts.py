"""Where adapters get in each other's way, as far as their weights tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean

import torch

from ..adapter_file import Layer
from ..download import Source
from .parts import compact, inner, read_parts


@dataclass(frozen=True)
class Conflicts:
    """What pairs of adapters share, as matrices (N, N) in the order of the names.

    Args:
        names: names of the adapters.
        inputs: share of what adapter i reads that adapter j reads, too: |Q_i Q_j^T|_F^2 weighted
            by how much adapter i's update makes of each direction; 0 to 1, mean over the layers
            that both have, 0 if there are none. Not symmetric.
        alignment: cosine of the two updates over all layers, -1 to 1: above 0 they push the
            shared inputs the same way, below 0 against each other.

    Example:
        >>> conflicts(["forget-dog", "forget-pizza"]).inputs[0][0]
        1.0
    """

    names: list[str]
    inputs: list[list[float]]
    alignment: list[list[float]]

    def worst(self) -> tuple[str, str, float]:
        """The pair that shares most: whose inputs, with whom, and how much of them."""
        pairs = permutations(range(len(self.names)), 2)
        i, j = max(pairs, key=lambda pair: self.inputs[pair[0]][pair[1]])
        return self.names[i], self.names[j], self.inputs[i][j]

    def table(self) -> str:
        """The shared inputs as Markdown: whose in rows, with whom in columns."""
        head = f"| inputs of | {' | '.join(self.names)} |\n|{'---|' * (len(self.names) + 1)}\n"
        rows = []
        for i, name in enumerate(self.names):
            cells = ["" if i == j else f"{v:.0%}" for j, v in enumerate(self.inputs[i])]
            rows.append(f"| {name} | {' | '.join(cells)} |\n")
        return head + "".join(rows)


def conflicts(sources: Sequence[Source]) -> Conflicts:
    """Compare what adapters read and write; no base model is needed.

    Args:
        sources: folders of two adapters or more, or their names on the Hub, `user/name`.

    Raises:
        TypeError: if the sources are no list.
        ValueError: for fewer than two, or adapters that `merge` refuses.
        HubError: with the fix, if the Hub or the network fails.

    Example:
        >>> print(conflicts(["forget-dog", "forget-pizza"]).table())
        | inputs of | forget-dog | forget-pizza |
        |---|---|---|
        | forget-dog |  | ...% |
        | forget-pizza | ...% |  |
    """
    parts = read_parts(sources)
    if len(parts) < 2:
        raise ValueError("one adapter has nothing to be in conflict with: pass two or more")
    all_updates = [{n: compact(u) for n, u in part.updates().items()} for part in parts]
    norms = [sum(inner(u, u) for u in updates.values()) ** 0.5 for updates in all_updates]
    inputs, alignment = [], []
    for i, a in enumerate(all_updates):
        inputs.append([1.0 if i == j else _shared(a, b) for j, b in enumerate(all_updates)])
        products = [sum(inner(a[n], b[n]) for n in a if n in b) for b in all_updates]
        scales = [norms[i] * norm for norm in norms]
        alignment.append([p / s if s else 0.0 for p, s in zip(products, scales, strict=True)])
    return Conflicts([part.name for part in parts], inputs, alignment)


def _shared(a: dict[str, Layer], b: dict[str, Layer]) -> float:
    """Share of a's update, by squared size, on inputs that b reads: |a P_b|^2 / |a|^2."""
    shares = []
    for name in (n for n in a if n in b and a[n].rank and b[n].rank):
        basis = torch.linalg.qr(b[name].down.double().T)[0].T
        square = inner(a[name], a[name])
        within = a[name]._replace(down=(a[name].down.double() @ basis.T) @ basis)
        shares.append(inner(within, within) / square if square else 0.0)
    return fmean(shares) if shares else 0.0
