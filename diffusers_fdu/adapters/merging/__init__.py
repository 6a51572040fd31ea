"""Many adapters as one: merged, so that they cost one at inference, and where they conflict."""

from .conflicts import Conflicts, conflicts
from .merge import Method, merge
from .merged import Merged

__all__ = ["Conflicts", "Merged", "Method", "conflicts", "merge"]
