"""Adapters as one file for other programs, and such files read back."""
