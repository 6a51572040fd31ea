"""Adapters as one file for other programs, and such files read back."""

from .export import ExportFormat, export
from .exported import Exported, read_exported
from .families import Family
from .layers import Layer

__all__ = ["ExportFormat", "Exported", "Family", "Layer", "export", "read_exported"]
