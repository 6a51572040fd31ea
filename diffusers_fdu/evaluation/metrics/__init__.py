"""Metrics: from pictures to numbers with intervals."""
