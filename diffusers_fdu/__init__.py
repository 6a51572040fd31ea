"""Concept unlearning for diffusers pipelines under any f-divergence, as a standard LoRA."""

from diffusers_fdu.divergences import DIVERGENCES, Divergence, divergence

__all__ = ["DIVERGENCES", "Divergence", "divergence"]
