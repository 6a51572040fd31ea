"""Bytes that a training takes, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass, field

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes that a training takes on its device.

    Args:
        recording: peak while pictures are recorded.
        closed_form: peak while the adapter's start is computed.
        training: peak while it trains.
        drawing: peak while one picture is drawn and decoded; None: the decoder is not known.
        parts: what `training` is made of, by name.
    """

    recording: int
    closed_form: int
    training: int
    drawing: int | None
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most that `unlearn` takes."""
        return max(self.recording, self.closed_form, self.training)

    def __str__(self) -> str:
        phases = {
            "recording": self.recording,
            "closed-form start": self.closed_form,
            "training": self.training,
            "drawing a picture": self.drawing,
        }
        lines = [f"{n}: {size / GIB:.2f} GiB" for n, size in phases.items() if size is not None]
        parts = [f"  {name}: {size / GIB:.3f} GiB" for name, size in self.parts.items() if size]
        return "\n".join([*lines[:3], *parts, *lines[3:]])


@dataclass(frozen=True)
class Passes:
    """Bytes of a pass of the denoiser, by its rows.

    Args:
        constant: whatever the rows.
        per_row: of each row.
    """

    constant: int
    per_row: int

    def __call__(self, rows: int) -> int:
        """Bytes for so many rows."""
        return self.constant + rows * self.per_row
