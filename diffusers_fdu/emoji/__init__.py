"""The embedded model: a small, trained text-to-image pipeline of emoji, and its judge.

It draws 32 concepts in 4 styles, and plays the part that UnlearnCanvas plays for large models: one
can unlearn a concept or a style and measure what happened to all others, without a download.
"""

from .classifier import EmojiJudge
from .loading import (
    CLIP_WEIGHTS,
    ORACLE,
    ORACLE_WEIGHTS,
    WEIGHTS,
    load_emoji_clip,
    load_emoji_judge,
    load_emoji_oracle,
    load_emoji_pipeline,
)
from .vocabulary import BACKGROUNDS, CONCEPTS, STYLES, SYNONYMS, caption

__all__ = [
    "BACKGROUNDS",
    "CLIP_WEIGHTS",
    "CONCEPTS",
    "ORACLE",
    "ORACLE_WEIGHTS",
    "STYLES",
    "SYNONYMS",
    "WEIGHTS",
    "EmojiJudge",
    "caption",
    "load_emoji_clip",
    "load_emoji_judge",
    "load_emoji_oracle",
    "load_emoji_pipeline",
]
