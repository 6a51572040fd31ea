"""What merging makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...utils.io import writable_folder
from .. import recipe
from ..adapter_file import Format
from ..write import write_adapter


@dataclass(frozen=True)
class Merged:
    """One adapter that stands for several.

    Args:
        state: see `AdapterFile`.
        config: see `AdapterFile`.
        component: the denoiser that it is for.
        format: of the files that it came from, and is saved in.
        recipe: of the parts, and how they were merged.
        errors: of every layer, |merged - sum|_F / |sum|_F, where the sum is that of the adapters
            at their weights, before any refinement.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    component: str
    format: Format
    recipe: dict[str, Any]
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """Of the whole update, as `errors`."""
        return self.recipe["error"]

    @property
    def rank(self) -> int:
        """The largest of the layers' ranks."""
        return self.config["r"]

    def save(self, directory: str | Path) -> Path:
        """Write it as `FDUnlearner.save` writes an adapter.

        Raises:
            ValueError: if the directory cannot be written.
        """
        folder = writable_folder(directory)
        write_adapter(folder, self.format, self.component, self.state, self.config)
        recipe.write(self.recipe, folder)
        return folder
