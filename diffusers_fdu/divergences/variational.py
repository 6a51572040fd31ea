r"""The variational estimator: a critic tells the student's predictions from the teacher's.

    min over the student, max over T:   E_teacher[T(pred)] - E_student[f*(T(pred))]

For the best T this is D_f(teacher || student) between the *distributions of predictions*, as in
the min-max objective of f-DMU (arXiv 2509.21167) and in f-GAN (arXiv 1606.00709). It is another
estimator than the closed profiles of `divergences`: those compare the two reverse steps at one
x_t, this one compares what either model predicts over all of them, so it does not tie the
student's answer at one state to the teacher's at the same state.

The critic is trained beside the student and is never part of the adapter.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..config import Variational
from ..utils.distributed import Processes
from .conjugates import Conjugate, conjugate

EMBEDDING = 64  # width of the sinusoidal embedding of t
leaky_relu = partial(nn.functional.leaky_relu, negative_slope=0.2)  # as usual in critics
SMALLEST = 4  # a map is halved until its shorter side is this


class Critic(nn.Module):
    """A small spectrally normalised network over a prediction and its timestep.

    Convolutions over (B, C, H, W), and over the frames of a video, (B, C, F, H, W), one below the
    other; the same layers over tokens for (B, N, C); then the mean over positions, and a linear
    head that is not normalised, so that the output can take any scale. A channel of ones beside
    the prediction's tells zeros inside from those around the map. `shape` is that of one
    prediction, without B, and `width` the number of channels inside.
    """

    def __init__(self, shape: Sequence[int], width: int = 64) -> None:
        super().__init__()
        if len(shape) not in (2, 3, 4):
            raise ValueError(
                "a critic takes predictions (B, C, H, W), (B, C, F, H, W) or (B, N, C), got "
                f"(B, {', '.join(map(str, shape))})"
            )
        self.is_map = len(shape) > 2
        if self.is_map:
            channels, *sides = shape
            sides = [math.prod(sides[:-1]), sides[-1]]
            halvings = max(1, min(3, int(math.log2(max(1, min(sides) // SMALLEST)))))
            self.first: nn.Module = spectral_norm(nn.Conv2d(channels + 1, width, 3, padding=1))
            kernel = 4 if min(sides) > 1 else 1
            self.blocks = nn.ModuleList(
                spectral_norm(nn.Conv2d(width, width, kernel, 2, kernel // 2 - (kernel > 1)))
                for _ in range(halvings)
            )
        else:
            self.first = spectral_norm(nn.Linear(shape[-1] + 1, width))
            self.blocks = nn.ModuleList(spectral_norm(nn.Linear(width, width)) for _ in range(2))
        self.time = spectral_norm(nn.Linear(EMBEDDING, width))
        self.head = nn.Linear(width, 1)

    def forward(self, prediction: Tensor, timestep: Tensor) -> Tensor:
        """Raw output v, (B,), for predictions (B, *shape), float32, and timesteps (B,) to 1000."""
        place = 1 if self.is_map else -1
        if prediction.dim() == 5:
            prediction = prediction.flatten(2, 3)
        ones = torch.ones_like(prediction.narrow(place, 0, 1))
        hidden = self.first(torch.cat([prediction, ones], place))
        time = self.time(get_timestep_embedding(timestep.float(), EMBEDDING))
        hidden = hidden + (time[:, :, None, None] if self.is_map else time[:, None])
        for block in self.blocks:
            hidden = block(leaky_relu(hidden))
        hidden = leaky_relu(hidden)
        return self.head(hidden.mean((2, 3)) if self.is_map else hidden.mean(1)).squeeze(-1)


class VariationalLoss:
    """The bound of an f-divergence between two sets of predictions, and the critic that holds it.

    `f` and `shape` are as in `conjugate` and `Critic`, and the seed is that of the critic's first
    weights; the global RNG is not touched. Processes hold one critic together, each with samples
    of its own.
    """

    def __init__(
        self,
        f: str | Conjugate,
        shape: Sequence[int],
        options: Variational | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        processes: Processes | None = None,
    ) -> None:
        self.options = options or Variational()
        self.processes = processes or Processes()
        self.conjugate = conjugate(f)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self.critic = Critic(shape, self.options.width).to(device)
        parameters, rate = self.critic.parameters(), self.options.learning_rate
        self.optimizer = torch.optim.AdamW(parameters, rate, betas=(0.5, 0.9))

    def __call__(self, pred: Tensor, target: Tensor, timestep: Tensor) -> Tensor:
        """The bound, a scalar in float32, differentiable in the student's predictions, `pred`."""
        self.critic.eval()  # its spectral norms are estimated when it learns, not when it is asked
        return self._bound(pred, target, timestep)

    def _bound(self, pred: Tensor, target: Tensor, timestep: Tensor) -> Tensor:
        both = torch.cat([target.float(), pred.float()])
        with torch.autocast(pred.device.type, enabled=False):
            real, other = self.critic(both, torch.cat([timestep, timestep])).chunk(2)
        real, other = self.conjugate.bound(real, other)
        return (real - other).mean()

    def update(self, pred: Tensor, target: Tensor, timestep: Tensor) -> Tensor:
        """One step of the critic up the bound; returns the bound before it, detached."""
        pred, target = pred.detach(), target.detach().float()
        penalty = self.options.gradient_penalty
        target.requires_grad_(penalty > 0)
        self.critic.train()
        with torch.enable_grad():
            bound = self._bound(pred, target, timestep)
            loss = -bound
            if penalty:
                raw = self.critic(target, timestep)
                (slope,) = torch.autograd.grad(raw.sum(), target, create_graph=True)
                loss = loss + penalty / 2 * slope.flatten(1).square().sum(1).mean()
            self.optimizer.zero_grad()
            loss.backward(inputs=list(self.critic.parameters()))
        self.processes.mean_([p.grad for p in self.critic.parameters() if p.grad is not None])
        self.optimizer.step()
        return bound.detach()

    def state_dict(self) -> dict[str, Any]:
        """State of the critic and its optimiser, for a checkpoint."""
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as from that state."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
