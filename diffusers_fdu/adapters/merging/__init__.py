"""Many adapters as one: merged, so that they cost one at inference, and where they conflict."""
