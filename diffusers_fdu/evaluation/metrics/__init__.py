"""Metrics: from pictures to figures with intervals."""
