"""Many adapters as one: merged, so that they cost one at inference, and where they conflict."""

from .conflicts import Conflicts, conflicts
from .merge import merge
from .merged import Merged
from .methods import Method

__all__ = ["Conflicts", "Merged", "Method", "conflicts", "merge"]
