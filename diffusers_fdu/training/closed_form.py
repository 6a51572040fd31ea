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

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..data.replay_buffer import Entry, ReplayBuffer
from ..pipelines.offload import placement
from ..utils.micro_batches import MicroBatches
from ..utils.nested import chunks
from .truncated_svd import truncated_svd

KEEP = 10.0
"""Weight of a kept token against one to change; 1 kept less on the embedded model."""
RIDGE = 1e-3  # of the mean diagonal; 1e-5 lets rare directions move
SHARE = 1e-5  # singular values below this share of the first carry rounding alone
TEXTS = 256  # of a kind; more do not change the means
TOGETHER = 2**28  # bytes of answers that are decomposed at once


@dataclass
class Moments:
    """P and M above, (D, D), float64."""

    pull: Tensor
    metric: Tensor


@torch.no_grad()
def closed_form_start(model: nn.Module, adapter_name: str, buffer: ReplayBuffer, size: int) -> int:
    """Set an adapter's weights to the closed form, where a layer reads nothing but the text.

    The adapter is active and still without effect. The denoiser runs twice as a whole, and
    then up to the first layer of those that are given the same text, `size` rows in one call.
    The answer is how many layers were set: 0 if none reads the text alone, as in joint attention,
    or if texts differ in length.
    """
    if buffer.is_ragged:
        return 0
    # Entries of each target's text and its anchor's, and of each text to keep, in any one state.
    state = buffer.entries("unlearn")[0].state
    pairs = _spread([(Entry(state, t, -1), Entry(state, a, -1)) for t, a in buffer.pairs])
    retained = _spread([Entry(state, text, -1) for text in buffer.kept_texts])
    same_text = _same_text(buffer)
    capture = _Capture(model, buffer, adapter_name)
    groups = capture.text_layers(*same_text) if pairs and same_text is not None else []
    if not groups:
        return 0
    moments = _moments(capture, [group[0] for group in groups], pairs, retained, size)
    dtype = placement(model).dtype
    for group in groups:
        layers = [capture.layers[name] for name in group]
        solve(layers, adapter_name, moments[group[0]], dtype)
    return sum(map(len, groups))


def _same_text(buffer: ReplayBuffer) -> tuple[Entry, Entry] | None:
    """Two entries of one text in two states; None if there are none."""
    first: dict[int, Entry] = {}
    for entry in buffer.entries("unlearn"):
        if first.setdefault(entry.text, entry).state != entry.state:
            return first[entry.text], entry
    return None


def _spread(items: list) -> list:
    count = min(TEXTS, len(items))
    return [items[i] for i in torch.linspace(0, len(items) - 1, count).round().long().tolist()]


class _Captured(BaseException):
    """Leaves the denoiser; no `except Exception` catches it."""


class _Capture:
    """What the adapted layers are given while the denoiser answers recorded rows."""

    def __init__(self, model: nn.Module, buffer: ReplayBuffer, adapter_name: str) -> None:
        self.model, self.buffer = model, buffer
        modules = dict(model.named_modules())
        self.layers: dict[str, Any] = {
            name: module
            for name, module in modules.items()
            if isinstance(module, LoraLayer) and adapter_name in module.lora_A
        }
        # The layer of the same attention that makes the queries, where there is one.
        self.queries = {n: "".join((*n.rpartition(".")[:2], "to_q")) for n in self.layers}
        queries = {name: modules[name] for name in self.queries.values() if name in modules}
        self.watched = {**self.layers, **queries}

    def inputs(self, entries: Sequence[Entry], names: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of the named layers, (B, L, D)."""
        captured: dict[str, Tensor] = {}

        def capture(name: str, module: nn.Module, args: tuple) -> None:
            captured[name] = args[0].detach()
            if len(captured) == len(names):
                raise _Captured  # what comes after the last of them is of no interest

        handles = [self.watched[n].register_forward_pre_hook(partial(capture, n)) for n in names]
        try:
            calls = self.buffer.calls(entries, *placement(self.model))
            self.model(**calls[0].inputs)
        except _Captured:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return captured

    def text_layers(self, entry: Entry, same_text: Entry) -> list[list[str]]:
        """Layers that read the text alone, in groups that are given the same tensor.

        Such a layer is given the same in two states of one text, and its queries are not: where
        the text attends to itself, another key does not make it another text.
        """
        inputs = self.inputs([entry], list(self.watched))
        others = self.inputs([same_text], list(self.watched))
        fixed = {n for n, v in inputs.items() if v.dim() == 3 and torch.equal(v, others[n])}
        groups: list[list[str]] = []
        for name in [n for n in inputs if n in fixed and n in self.layers]:
            if self.queries[name] != name and self.queries[name] in fixed:
                continue
            group = next((g for g in groups if torch.equal(inputs[g[0]], inputs[name])), None)
            if group is None:
                groups.append([name])
            else:
                group.append(name)
        return groups


def _moments(
    capture: _Capture,
    names: Sequence[str],
    pairs: Sequence[tuple[Entry, Entry]],
    retained: Sequence[Entry],
    size: int,
) -> dict[str, Moments]:
    """P and M of each layer, over all tokens of all prompts."""
    pull: dict[str, Any] = defaultdict(float)
    changed: dict[str, Any] = defaultdict(float)
    held: dict[str, Any] = defaultdict(float)

    def change(part: Sequence[tuple[Entry, Entry]]) -> None:
        targets = capture.inputs([target for target, _ in part], names)
        anchors = capture.inputs([anchor for _, anchor in part], names)
        for name in names:
            c, a = _exact(targets[name]), _exact(anchors[name])
            tokens = len(pairs) * c.shape[1]
            c, a = c.flatten(0, 1), align(c, a).flatten(0, 1)
            pull[name] += (a - c).T @ c / tokens
            changed[name] += c.T @ c / tokens

    def keep(part: Sequence[Entry]) -> None:
        for name, value in capture.inputs(part, names).items():
            tokens = len(retained) * value.shape[1]
            k = _exact(value).flatten(0, 1)
            held[name] += k.T @ k / tokens

    micro = MicroBatches(size)
    micro.map(change, pairs)
    micro.map(keep, retained)
    moments = {}
    for name in names:
        metric = changed[name] + KEEP * held[name]
        metric.diagonal().add_(RIDGE * metric.diagonal().mean())
        moments[name] = Moments(pull[name], metric)
    return moments


def _exact(value: Tensor) -> Tensor:
    """In float64 where it is, or on the CPU: not every accelerator has float64."""
    return value.to(value.device if value.is_cuda else "cpu", torch.float64)


def solve(layers: Sequence[Any], adapter_name: str, moments: Moments, dtype: torch.dtype) -> None:
    """Give layers that read the same text the matrices of their ranks nearest to W P M^-1.

    The adapter on PEFT's LoRA layers is still without effect. `dtype` is that of their inputs.
    """
    basis, rows = _map(moments)
    alike: dict[Any, list[Any]] = {}
    for layer in layers:
        up = layer.lora_B[adapter_name].weight
        alike.setdefault((len(up), up.device), []).append(layer)
    for (width, _), members in alike.items():
        size = max(1, TOGETHER // (8 * basis.shape[1] * width))
        for part in chunks(members, size):
            _set(part, adapter_name, basis, rows, dtype)


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


def _set(
    layers: Sequence[Any], adapter_name: str, basis: Tensor, rows: Tensor, dtype: torch.dtype
) -> None:
    """Give layers of one width the matrices of their ranks that are nearest to W basis rows."""
    device = layers[0].lora_A[adapter_name].weight.device
    # The layers themselves multiply: quantised weights and other adapters are their own business.
    # Zeros go with the basis, since a layer may add a bias, which is taken off again.
    inputs = torch.cat([torch.zeros_like(basis[:, :1]), basis], 1).T.to(device, dtype)
    answers = torch.stack([_exact(layer(inputs)) for layer in layers]).to(basis.device)
    rank = max(layer.r[adapter_name] for layer in layers)
    # As the rows are orthonormal in the metric, the nearest matrix keeps the leading vectors of
    # W basis. The root of the values goes to each side, and the scaling is divided out.
    decomposed = truncated_svd((answers[:, 1:] - answers[:, :1]).mT, rank)
    for layer, left, values, right in zip(layers, *decomposed, strict=True):
        down, up = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        count = min(layer.r[adapter_name], len(values))
        root = (values[:count] / layer.scaling[adapter_name]).sqrt()
        down.zero_()
        up.zero_()
        down[:count] = (root[:, None] * (right[:count] @ rows)).to(down)
        up[:, :count] = (left[:, :count] * root).to(up)


def align(target: Tensor, anchor: Tensor) -> Tensor:
    """For every token of the target the anchor's token that takes its place.

    Dynamic time warping (Sakoe and Chiba, 1978): of all monotone paths through both sequences,
    the one with the least sum of squared distances. Equal beginnings are paired as they are, and
    "Mickey Mouse" against "dog" needs no tokenizer. Of several anchor tokens on one target token
    the nearest is taken. Tokens are (B, L, D) and (B, M, D), the answer is (B, L, D).
    """
    # The path is found on the CPU: hundreds of steps, one after the other, of some numbers each.
    cost = torch.cdist(target, anchor).square().cpu()
    steps = _path_steps(cost)
    batch, length, width = cost.shape
    nearest = torch.full((batch, length), torch.inf, dtype=cost.dtype)
    chosen = torch.zeros(batch, length, dtype=torch.long)
    every = torch.arange(batch)
    i, j = torch.full((batch,), length - 1), torch.full((batch,), width - 1)
    for _ in range(length + width - 1):
        here = cost[every, i, j]
        is_nearer = here < nearest[every, i]
        nearest[every, i] = torch.where(is_nearer, here, nearest[every, i])
        chosen[every, i] = torch.where(is_nearer, j, chosen[every, i])
        step = steps[every, i, j]  # at the origin nothing moves any more
        i, j = i - (step != 2).long(), j - (step != 1).long()
        i, j = i.clamp(min=0), j.clamp(min=0)
    index = chosen.to(anchor.device)[..., None].expand(-1, -1, anchor.shape[2])
    return anchor.gather(1, index)


def _path_steps(cost: Tensor) -> Tensor:
    """How the best path reaches each pair: 0 by a step in both, 1 in the target, 2 in the anchor.

    One anti-diagonal at a time, whose pairs do not depend on each other.
    """
    batch, length, width = cost.shape
    total = torch.full((batch, length + 1, width + 1), torch.inf, dtype=cost.dtype)
    total[:, 0, 0] = 0
    steps = torch.zeros(batch, length, width, dtype=torch.long)
    for diagonal in range(length + width - 1):
        i = torch.arange(max(0, diagonal - width + 1), min(length, diagonal + 1))
        j = diagonal - i
        predecessors = torch.stack([total[:, i, j], total[:, i, j + 1], total[:, i + 1, j]])
        best, steps[:, i, j] = predecessors.min(0)
        total[:, i + 1, j + 1] = best + cost[:, i, j]
    return steps
