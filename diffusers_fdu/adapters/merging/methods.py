"""How several updates of a layer become one: PEFT's ways, a truncation, and one of our own.

Each takes the adapters and gives the merged LoRA's two factors for every layer. PEFT's own
`add_weighted_adapter` does concat, ties and dare, on a model that has the layers' names and sizes
and no weights, so that no base model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from .parts import Part, Update

Method = Literal["concat", "svd", "ties", "dare", "ortho"]

PEFT_NAMES = {"concat": "cat", "ties": "ties_svd", "dare": "dare_linear_svd"}
RIDGE = 1e-2
"""Of `ortho`, against the mean squared length of a direction, which is 1.

Directions that two adapters share to more than 1 - RIDGE are not told apart.
"""

NOTHING = 1e-4
"""Of the first singular value's root; float16 holds no smaller share."""


def merged(parts: Sequence[Part], method: Method, rank: int, density: float) -> dict[str, Update]:
    """One update for each layer.

    Args:
        parts: the adapters.
        method: see `merge`.
        rank: of ties and dare; the others come with the sum of the ranks.
        density: of ties and dare.
    """
    if method in ("concat", "svd"):
        return by_peft(parts, "concat", rank, density)
    if method == "ortho":
        return {name: ortho(updates) for name, updates in by_layer(parts).items()}
    return by_peft(parts, method, rank, density)


def by_layer(parts: Sequence[Part]) -> dict[str, list[Update]]:
    """The updates of every layer that any of the adapters has."""
    found: dict[str, list[Update]] = {}
    for part in parts:
        for name, update in part.updates().items():
            found.setdefault(name, []).append(update)
    return found


def ortho(updates: Sequence[Update]) -> Update:
    """The update that does on each adapter's inputs what that adapter does there.

    With the rows of Q_i an orthonormal basis of the inputs that adapter i reads, and
    dW_i = C_i Q_i, the plain sum answers an input q of adapter i with dW_i q + sum_j C_j Q_j q.
    The rest is what the others do to it. The least dW with

        dW Q_i^T = C_i    for all i

    is C (Q Q^T)^-1 Q, C and Q stacked; a ridge keeps what adapters share nearly alike from being
    torn apart: there the answer tends to their mean. Once the ranks add up to about the layer's
    width, little is left that is not shared, and the least dW grows large: `merge` warns then.
    """
    bases, images = [], []
    for down, up in map(compact, updates):
        q, r = torch.linalg.qr(down.double().T)
        bases.append(q.T)
        images.append(up.double() @ r.T)
    basis, image = torch.cat(bases), torch.cat(images, 1)
    metric = basis @ basis.T
    metric.diagonal().add_(RIDGE)
    up = torch.linalg.solve(metric, image.T).T
    return Update(basis.float(), ((1 + RIDGE) * up).float())


def by_peft(parts: Sequence[Part], method: str, rank: int, density: float) -> dict[str, Update]:
    """What PEFT's `add_weighted_adapter` makes of them."""
    shell, names = nn.Module(), []
    model: Any = None
    for i, part in enumerate(parts):
        for name, (down, up) in part.file.modules.items():
            _put(shell, name, down, up)
        name = f"part{i}"
        names.append(name)
        # The strength is in alpha, so that ties counts votes with their weights and signs.
        config = part.file.lora_config(part.strength)
        if model is None:
            model = LoraModel(shell, config, name)
        else:
            model.peft_config[name] = config
            model.inject_adapter(shell, name)
        state = {key: value.float() for key, value in part.file.state.items()}
        set_peft_model_state_dict(model.model, state, adapter_name=name)
    model.add_weighted_adapter(
        names,
        [1.0] * len(names),
        "whole",
        PEFT_NAMES[method],
        svd_rank=rank,
        svd_full_matrices=False,
        density=density,
    )
    state = get_peft_model_state_dict(model.model, adapter_name="whole")
    layers = dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in state)
    halves = {name: [state[f"{name}.lora_{h}.weight"].flatten(1) for h in "AB"] for name in layers}
    return {name: Update(*both) for name, both in halves.items()}


def _put(shell: nn.Module, name: str, down: Tensor, up: Tensor) -> None:
    """Add a layer without weights, of the size that an update is for."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(shell, part):
            shell.add_module(part, nn.Module())
        shell = getattr(shell, part)
    if hasattr(shell, last):
        return
    size, kernel = (up.shape[0], *down.shape[1:]), down.shape[2:]
    if not kernel:
        layer: nn.Module = nn.Linear(size[1], size[0], bias=False, device="meta")
    else:
        layer = nn.Conv2d(size[1], size[0], tuple(kernel), bias=False, device="meta")  # type: ignore[arg-type]
    # One number, seen as a matrix: PEFT looks at its size and device alone.
    layer.weight = nn.Parameter(torch.zeros(()).expand(size), requires_grad=False)
    shell.add_module(last, layer)


def truncated(update: Update, rank: int) -> Update:
    """The update of this rank that is nearest (Eckart and Young), its factors of equal size."""
    q_up, r_up = torch.linalg.qr(update.up.double())
    q_down, r_down = torch.linalg.qr(update.down.double().T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T)
    root = s[:rank].sqrt()
    up, down = q_up @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ q_down.T
    return Update(down.float(), up.float())


def compact(update: Update) -> Update:
    """The same update without the directions that it reads to no effect."""
    core = truncated(update, len(update.down))
    sizes = core.up.norm(dim=0)
    kept = sizes > NOTHING * sizes.max().clamp(min=1e-30)
    return Update(core.down[kept], core.up[:, kept])


def inner(a: Update, b: Update) -> float:
    """Inner product of two updates, tr((up down)^T (up' down'))."""
    ups, downs = a.up.double().T @ b.up.double(), a.down.double() @ b.down.double().T
    return (ups * downs).sum().item()
