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

from ..data.replay_buffer import Entry, ReplayBuffer
from ..pipelines.offload import placement
from ..utils.micro_batches import MicroBatches
from ..utils.nested import chunks
from .alignment import align
from .truncated_svd import truncated_svd

KEEP = 10.0
"""Weight of a kept token against one to change; 1 kept less on the embedded model."""
RIDGE = 1e-3  # of the mean diagonal; 1e-5 lets rare directions move
SHARE = 1e-5  # singular values below this share of the first carry rounding alone
TEXTS = 256  # of a kind; more do not change the means
TOGETHER = 2**28  # bytes of answers that are decomposed at once
Inputs = dict[str, Tensor]


@dataclass
class Moments:
    """Means over tokens that the least squares need.

    Args:
        pull: P above, (D, D), float64.
        metric: M above, (D, D), float64, positive definite.
    """

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
        size: rows in one call of the denoiser, fewer if they do not fit the memory.

    Returns:
        How many layers were set; 0 if none reads the text alone, as in joint attention, or if
        texts differ in length.
    """
    layers = _adapted(model, adapter_name)
    pairs, kept = _asked(buffer)
    if not pairs or buffer.is_ragged:
        return 0
    capture = _Capture(model, buffer, layers)
    twins = _twins(buffer)
    names = capture.text_layers(*twins) if twins else []
    groups = capture.groups(twins[0], names) if twins and names else []
    heads = [group[0] for group in groups]
    moments = _moments(capture, heads, pairs, kept, size)
    dtype = placement(model).dtype
    for group in groups:
        solve([layers[name] for name in group], adapter_name, moments[group[0]], dtype)
    return len(names)


def solve(layers: Sequence[Any], adapter_name: str, moments: Moments, dtype: torch.dtype) -> None:
    """Give layers that read the same text the matrices of their ranks nearest to W P M^-1.

    Args:
        layers: PEFT's LoRA layers, the new adapter still without effect.
        adapter_name: the adapter.
        moments: of what the layers read.
        dtype: in which the layers compute.
    """
    basis, rows = _map(moments)
    for alike in _alike(layers, adapter_name, basis.shape[1]):
        _set(alike, adapter_name, basis, rows, dtype)


def _adapted(model: nn.Module, adapter_name: str) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.lora_A
    }


def _asked(buffer: ReplayBuffer) -> tuple[list[tuple[Entry, Entry]], list[Entry]]:
    """Entries of each target's text and its anchor's, and of each text to keep, in any state."""
    state = buffer.entries("unlearn")[0].state
    pairs = [(Entry(state, target, -1), Entry(state, own, -1)) for target, own in buffer.pairs]
    return _spread(pairs), _spread([Entry(state, text, -1) for text in buffer.kept_texts])


def _twins(buffer: ReplayBuffer) -> tuple[Entry, Entry] | None:
    """Two entries of one text in two states; None if there are none."""
    first: dict[int, Entry] = {}
    for entry in buffer.entries("unlearn"):
        if first.setdefault(entry.text, entry).state != entry.state:
            return first[entry.text], entry
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
        modules = {name for name, _ in model.named_modules()}
        self.queries = {name: _queries(modules, name) for name in layers}
        found = {name: model.get_submodule(name) for name in self.queries.values() if name}
        self.watched = {**layers, **found}

    def inputs(self, entries: Sequence[Entry], names: Sequence[str]) -> Inputs:
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
            calls = self.buffer.calls(entries, *placement(self.model))
            self.model(**calls[0].inputs)
        except _Seen:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def text_layers(self, entry: Entry, same_text: Entry) -> list[str]:
        """Layers that are given the same in two states of one text, and whose queries are not.

        Where the text attends to itself, another key does not make it another text.
        """
        own = self.inputs([entry], list(self.watched))
        other = self.inputs([same_text], list(self.watched))
        fixed = {n for n, v in own.items() if v.dim() == 3 and torch.equal(v, other[n])}
        return [n for n in self.layers if n in fixed and self.queries[n] not in fixed]

    def groups(self, entry: Entry, names: Sequence[str]) -> list[list[str]]:
        """Layers that are given the same tensor."""
        found: list[tuple[Tensor, list[str]]] = []
        for name, value in self.inputs([entry], names).items():
            group = next((names for other, names in found if torch.equal(other, value)), None)
            if group is None:
                found.append((value, [name]))
            else:
                group.append(name)
        return [group for _, group in found]


def _queries(modules: set[str], name: str) -> str | None:
    """The layer of the same attention that makes the queries; None if there is none."""
    other = ".".join([*name.split(".")[:-1], "to_q"])
    return other if other in modules and other != name else None


def _moments(
    capture: _Capture,
    names: Sequence[str],
    pairs: Sequence[tuple[Entry, Entry]],
    kept: Sequence[Entry],
    size: int,
) -> dict[str, Moments]:
    """P and M of each layer, over all tokens of all prompts."""
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, place: int, value: Tensor, count: int) -> None:
        if name not in sums:
            sums[name] = [torch.zeros_like(value) for _ in range(3)]
        sums[name][place] += value / count

    def change(part: Sequence[tuple[Entry, Entry]]) -> None:
        targets = capture.inputs([target for target, _ in part], names)
        anchors = capture.inputs([anchor for _, anchor in part], names)
        for name in names:
            c, a = _exact(targets[name]), _exact(anchors[name])
            a = align(c, a).flatten(0, 1)
            tokens = len(pairs) * c.shape[1]
            c = c.flatten(0, 1)
            add(name, 0, (a - c).T @ c, tokens)
            add(name, 1, c.T @ c, tokens)

    def keep(part: Sequence[Entry]) -> None:
        for name, value in capture.inputs(part, names).items():
            k = _exact(value)
            tokens = len(kept) * k.shape[1]
            k = k.flatten(0, 1)
            add(name, 2, k.T @ k, tokens)

    micro = MicroBatches(size)
    micro.map(change, pairs)
    micro.map(keep, kept)
    moments = {}
    for name, (pull, changed, held) in sums.items():
        metric = changed + KEEP * held
        metric.diagonal().add_(RIDGE * metric.diagonal().mean())
        moments[name] = Moments(pull, metric)
    return moments


def _exact(value: Tensor) -> Tensor:
    """In float64 where it is, or on the CPU: not every accelerator has float64."""
    return value.to(value.device if value.is_cuda else "cpu", torch.float64)


def _map(moments: Moments) -> tuple[Tensor, Tensor]:
    """P M^-1 = basis @ rows: (D, K) and (K, D), the rows orthonormal in the metric of M.

    With M = L L^T, both come from the singular value decomposition of P L^-T. The eigenvectors of
    its square take half the time, or on an accelerator far less, and are as good: of values above
    `SHARE` the square keeps six digits and more.
    """
    lower = torch.linalg.cholesky(moments.metric)
    whitened = torch.linalg.solve_triangular(lower, moments.pull.T, upper=False).T
    squares, left = torch.linalg.eigh(whitened @ whitened.T)
    values = squares.flip(0).clamp(min=0).sqrt()
    used = int((values > SHARE * values[0]).sum().clamp(min=1))
    values, left = values[:used], left.flip(1)[:, :used]
    right = left.T @ whitened / values[:, None].clamp(min=torch.finfo(values.dtype).tiny)
    rows = torch.linalg.solve_triangular(lower.T, right.T, upper=True).T
    return left * values, rows


def _alike(layers: Sequence[Any], adapter_name: str, columns: int) -> list[Sequence[Any]]:
    """Layers with outputs of one width, on one device, as many as are decomposed at once."""
    found: dict[Any, list[Any]] = {}
    for layer in layers:
        up = layer.lora_B[adapter_name].weight
        found.setdefault((len(up), up.device), []).append(layer)
    parts: list[Sequence[Any]] = []
    for (width, _), alike in found.items():
        size = max(1, TOGETHER // (8 * columns * width))
        parts += chunks(alike, size)
    return parts


def _set(
    layers: Sequence[Any], adapter_name: str, basis: Tensor, rows: Tensor, dtype: torch.dtype
) -> None:
    """Give layers of one width the matrices of their ranks that are nearest to W basis rows."""
    device = layers[0].lora_A[adapter_name].weight.device
    # The layers themselves multiply: quantised weights and other adapters are their own business.
    asked = torch.cat([torch.zeros_like(basis[:, :1]), basis], 1).T.to(device, dtype)
    answers = torch.stack([_exact(layer(asked)) for layer in layers]).to(basis.device)
    rank = max(layer.r[adapter_name] for layer in layers)
    found = truncated_svd((answers[:, 1:] - answers[:, :1]).mT, rank)
    for layer, left, values, right in zip(layers, *found, strict=True):
        down, up = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        own = min(layer.r[adapter_name], len(values))
        root = (values[:own] / layer.scaling[adapter_name]).sqrt()
        down.zero_()
        up.zero_()
        down[:own] = (root[:, None] * (right[:own] @ rows)).to(down)
        up[:, :own] = (left[:, :own] * root).to(up)
