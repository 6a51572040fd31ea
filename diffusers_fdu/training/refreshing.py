"""What changes the rows of the replay buffer while a training goes on."""

from __future__ import annotations

from torch import nn

from ..config import Settings
from ..data.replay_buffer import ReplayBuffer
from ..pipelines.recorder import Recorder
from ..utils.distributed import Processes
from .acceleration import precision
from .callbacks import Refresh
from .mining import Miner
from .robust import Adversary


def refreshers(
    model: nn.Module,
    adapter_name: str,
    buffer: ReplayBuffer,
    recorder: Recorder,
    settings: Settings,
    processes: Processes,
) -> list[Refresh]:
    """Those that the settings ask for.

    Args:
        model: the denoiser, the adapter active.
        adapter_name: the adapter that is trained.
        buffer: what was recorded.
        recorder: of the pipe.
        settings: of the training.
        processes: train it together.
    """
    train, data, performance = settings
    found: list[Refresh] = []
    if buffer.candidates:
        rows = 2 * performance.micro_batch(train.batch_size)
        found.append(Miner(model, adapter_name, buffer, train.seed, rows))
    if data.defence is not None:
        autocast, _ = precision(model, performance.mixed_precision)
        how = data.defence, train.seed, processes, autocast
        found.append(Adversary(model, recorder, buffer, *how))
    return found
