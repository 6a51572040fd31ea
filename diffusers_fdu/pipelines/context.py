"""What a recording and a training share: the pipeline, its options, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..settings import Settings
from ..utils.distributed import Processes


@dataclass(frozen=True)
class RunContext:
    """A pipeline, and how it is recorded and trained.

    Args:
        pipe: a diffusers pipeline.
        component: name of the denoiser that is recorded and trained.
        settings: all options.
        pipeline_kwargs: arguments of the recorded runs, such as height and guidance_scale.
        processes: the processes that work together.
        progress: whether progress bars are shown.
    """

    pipe: Any
    component: str
    settings: Settings
    pipeline_kwargs: dict[str, Any] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)
    progress: bool = True

    @property
    def model(self) -> nn.Module:
        """The denoiser."""
        return getattr(self.pipe, self.component)
