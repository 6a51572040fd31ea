"""What is drawn for an evaluation, and who says what a picture shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL.Image import Image


@dataclass(frozen=True)
class Request:
    """A picture to be drawn.

    Args:
        prompt: what the pipeline is asked.
        seed: of the initial noise.
        part: of the protocol that it belongs to: "target", "synonyms", "retain", ...
        expected: the right answer by domain, such as {"object": "dog", "style": "noto"}.
    """

    prompt: str
    seed: int
    part: str
    expected: Mapping[str, str] = field(default_factory=dict)


class Judge(Protocol):
    """Says what pictures show: any callable on a list of PIL images.

    Its answers are one mapping for each picture, from domain to name, such as {"object": "dog",
    "style": "noto"}.
    """

    def __call__(self, images: Sequence[Image]) -> Sequence[Mapping[str, str]]:
        """What each picture shows."""
        ...
