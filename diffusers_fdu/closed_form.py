"""A closed-form start of an adapter: the linear map that sends a target's keys to its anchor's.

A cross-attention layer with weight W turns each token's vector c of the text into a key (or a
value) W c. For aligned tokens c of the target prompt and a of the anchor prompt, and tokens k to
keep, the ridge least squares

    min over dW   mean |dW c - W (a - c)|^2  +  KEEP mean |dW k|^2  +  ridge |dW|^2

are solved by dW = W P M^-1, with P = mean (a - c) c^T and M = mean c c^T + KEEP mean k k^T +
ridge (as unified concept editing does, Gandikota et al., arXiv 2308.14761). The LoRA gets the
matrix of its rank that is nearest to dW in the metric of M, so that directions no text uses cost
no rank. The map P M^-1 is the same for all layers that read the same text.

Nothing here knows a model family: the layers' inputs are captured while the denoiser answers
recorded rows, and layers whose input depends on more than the text are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .alignment import align
from .offload import placement
from .replay import ReplayBuffer, Row
from .values import chunks

KEEP = 10.0
"""Weight of a kept token against one to change; 1 kept less on the embedded model."""
RIDGE = 1e-3  # of the mean diagonal; 1e-5 lets rare directions move
SHARE = 1e-5  # singular values below this share of the first carry rounding alone
TEXTS = 256  # of a kind; more do not change the means
Inputs = dict[str, Tensor]


@dataclass
class _Moments:
    """Means over tokens that the least squares need, (D, D), float64."""

    pull: Tensor
    metric: Tensor


@torch.no_grad()
def closed_form_start(
    model: nn.Module, adapter_name: str, buffer: ReplayBuffer, size: int = 16
) -> int:
    """Set an adapter's weights to the closed form, where a layer reads nothing but the text.

    The denoiser runs three times as a whole, and then up to the first layer of those that are
    given the same text.

    Args:
        model: the denoiser, the new adapter attached and active, still without effect.
        adapter_name: the adapter.
        buffer: what was recorded of it.
        size: rows in one call of the denoiser.

    Returns:
        How many layers were set; 0 if none reads the text alone, as in joint attention, or if
        texts differ in length.
    """
    layers = _adapted(model, adapter_name)
    pairs, kept = _rows(buffer)
    if not pairs or buffer.is_ragged:
        return 0
    capture = _Capture(model, buffer, layers)
    twins = _twins(buffer)
    names = capture.text_layers(*twins) if twins else []
    groups = capture.groups(twins[0], names) if twins and names else []
    heads = [group[0] for group in groups]
    moments = _moments(capture, heads, pairs, kept, size)
    for group in groups:
        basis, rows = _map(moments[group[0]])
        for name in group:
            _set(layers[name], adapter_name, basis, rows, placement(model).dtype)
    return len(names)


def _adapted(model: nn.Module, adapter_name: str) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.lora_A
    }


def _rows(buffer: ReplayBuffer) -> tuple[list[tuple[Row, Row]], list[Row]]:
    """One pair of rows for each target's prompt and its anchor's, one row for each kept prompt."""
    retained = buffer.entries("retain")
    own = {entry.prediction: i for i, entry in enumerate(retained)}
    pairs: dict[tuple[int, int], tuple[Row, Row]] = {}
    for i, entry in enumerate(buffer.entries("unlearn")):
        anchor = own.get(entry.prediction)
        if anchor is not None:  # negative guidance has no text to go to
            texts = entry.text, retained[anchor].text
            pairs.setdefault(texts, (("unlearn", i), ("retain", anchor)))
    kept: dict[int, Row] = {}
    for i, entry in enumerate(retained):
        kept.setdefault(entry.text, ("retain", i))
    return _spread(list(pairs.values())), _spread(list(kept.values()))


def _twins(buffer: ReplayBuffer) -> tuple[Row, Row] | None:
    """Two rows of one text in two states; None if there are none."""
    first: dict[int, Row] = {}
    for i, entry in enumerate(buffer.entries("unlearn")):
        row: Row = ("unlearn", i)
        if first.setdefault(entry.text, row) != row:
            return first[entry.text], row
    return None


def _spread(items: list) -> list:
    count = min(TEXTS, len(items))
    return [items[i] for i in torch.linspace(0, len(items) - 1, count).round().long().tolist()]


class _Seen(BaseException):
    """Leaves the denoiser; no `except Exception` catches it."""


class _Capture:
    """What the adapted layers are given while the denoiser answers recorded rows."""

    def __init__(self, model: nn.Module, buffer: ReplayBuffer, layers: dict[str, Any]) -> None:
        self.model, self.buffer, self.layers = model, buffer, layers
        self.queries = {name: _queries(model, name) for name in layers}
        found = {name: model.get_submodule(name) for name in self.queries.values() if name}
        self.watched = {**layers, **found}

    def inputs(self, rows: Sequence[Row], names: Sequence[str]) -> Inputs:
        """Inputs of the named layers, (B, L, D)."""
        seen: Inputs = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: tuple) -> None:
                seen[name] = args[0].detach()
                if len(seen) == len(names):
                    raise _Seen  # what comes after the last of them is of no interest

            return hook

        handles = [self.watched[n].register_forward_pre_hook(keep(n)) for n in names]
        try:
            calls, _ = self.buffer.batch(rows, *placement(self.model))
            self.model(**calls[0].inputs)
        except _Seen:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def text_layers(self, row: Row, same_text: Row) -> list[str]:
        """Layers that are given the same in two states of one text, and whose queries are not.

        Where the text attends to itself, another key does not make it another text.
        """
        own = self.inputs([row], list(self.watched))
        other = self.inputs([same_text], list(self.watched))
        fixed = {n for n, v in own.items() if v.dim() == 3 and _same(v, other[n])}
        return [n for n in self.layers if n in fixed and self.queries[n] not in fixed]

    def groups(self, row: Row, names: Sequence[str]) -> list[list[str]]:
        """Layers that are given the same tensor."""
        found: list[tuple[Tensor, list[str]]] = []
        for name, value in self.inputs([row], names).items():
            group = next((names for other, names in found if _same(other, value)), None)
            if group is None:
                found.append((value, [name]))
            else:
                group.append(name)
        return [group for _, group in found]


def _queries(model: nn.Module, name: str) -> str | None:
    """The layer of the same attention that makes the queries; None if there is none."""
    other = ".".join([*name.split(".")[:-1], "to_q"])
    return other if other in dict(model.named_modules()) and other != name else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _moments(
    capture: _Capture,
    names: Sequence[str],
    pairs: Sequence[tuple[Row, Row]],
    kept: Sequence[Row],
    size: int,
) -> dict[str, _Moments]:
    """P and M of each layer, over all tokens of all prompts."""
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, place: int, value: Tensor, count: int) -> None:
        if name not in sums:
            sums[name] = [torch.zeros_like(value) for _ in range(3)]
        sums[name][place] += value / count

    for part in chunks(pairs, size):
        targets = capture.inputs([target for target, _ in part], names)
        anchors = capture.inputs([anchor for _, anchor in part], names)
        for name in names:
            c, a = _exact(targets[name]), _exact(anchors[name])
            a = align(c, a).flatten(0, 1)
            tokens = len(pairs) * c.shape[1]
            c = c.flatten(0, 1)
            add(name, 0, (a - c).T @ c, tokens)
            add(name, 1, c.T @ c, tokens)
    for chunk in chunks(kept, size):
        for name, value in capture.inputs(chunk, names).items():
            k = _exact(value)
            tokens = len(kept) * k.shape[1]
            k = k.flatten(0, 1)
            add(name, 2, k.T @ k, tokens)
    moments = {}
    for name, (pull, changed, keep) in sums.items():
        metric = changed + KEEP * keep
        metric.diagonal().add_(RIDGE * metric.diagonal().mean())
        moments[name] = _Moments(pull, metric)
    return moments


def _exact(value: Tensor) -> Tensor:
    """In float64, which not every accelerator has."""
    return value.cpu().double()


def _map(moments: _Moments) -> tuple[Tensor, Tensor]:
    """P M^-1 = basis @ rows: (D, K) and (K, D), the rows orthonormal in the metric of M."""
    lower = torch.linalg.cholesky(moments.metric)
    whitened = torch.linalg.solve_triangular(lower, moments.pull.T, upper=False).T
    left, values, right = torch.linalg.svd(whitened, full_matrices=False)
    used = int((values > SHARE * values[0]).sum().clamp(min=1))
    rows = torch.linalg.solve_triangular(lower.T, right[:used].T, upper=True).T
    return left[:, :used] * values[:used], rows


def _set(layer: Any, adapter_name: str, basis: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
    """Give a layer the matrix of its rank that is nearest to W basis rows."""
    down, up = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
    # The layer itself multiplies: quantised weights and other adapters are its own business.
    asked = torch.cat([torch.zeros_like(basis[:, :1]), basis], 1).T
    answers = _exact(layer(asked.to(down.device, dtype)))
    left, values, right = torch.linalg.svd((answers[1:] - answers[:1]).T, full_matrices=False)
    rank = min(layer.r[adapter_name], len(values))
    root = (values[:rank] / layer.scaling[adapter_name]).sqrt()
    down.zero_()
    up.zero_()
    down[:rank] = (root[:, None] * (right[:rank] @ rows)).to(down)
    up[:, :rank] = (left[:, :rank] * root).to(up)
