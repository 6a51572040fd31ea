"""What must stay: prompts whose pictures are held to the frozen model's."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import torch

from .concepts import TEMPLATES, Concept
from .templates import (
    fill,
    fill_words,
    parts,
    plain,
    with_plurals,
    without,
)

NEIGHBOURS = 64
"""How many of the vocabulary's words count as near the targets."""


def retain_prompts(
    concepts: Sequence[Concept],
    retain: Sequence[str] | None,
    count: int,
    words: Sequence[str],
    rng: random.Random,
    near: Sequence[str] = (),
) -> list[str]:
    """`count` prompts whose pictures must stay as they are.

    Args:
        concepts: what is unlearned; its words are never retained.
        retain: what matters to the user, each used as it is, and single words in the concepts'
            templates too. None: words of the vocabulary in those templates, which needs neither
            data nor knowledge of the other concepts.
        count: number of prompts.
        words: the tokenizer's vocabulary.
        rng: source of the choices.
        near: words that every second prompt is made of, if `retain` is None.

    Raises:
        ValueError: if a prompt of `retain` has all words of a target, or it is a lone string.
    """
    if isinstance(retain, str):
        raise ValueError(f"retain must be a list of prompts, got the string {retain!r}")
    named = list(retain or ())
    targets = [name for concept in concepts for name in concept.names]
    _check_named(named, targets)
    free = without(words, targets)
    anchors = [concept.anchor_name for concept in concepts]
    subjects = named or without(free, anchors)
    if not subjects:
        return [""] * count
    near = without(near, (*targets, *anchors))
    templates = [c.usable_templates(free) for c in concepts if c.kind != "prompt"]
    templates = templates or [[t for t in TEMPLATES["object"] if free or "{word}" not in t]]
    prompts = []
    for i in range(count):
        subject = rng.choice(near if near and not named and i % 2 else subjects)
        noun = re.sub(r"^(a|an|the) ", "", subject)
        if named and (i % 2 == 0 or " " in noun):
            prompts.append(subject)
        else:
            template = rng.choice(templates[i // 2 % len(templates)])
            prompts.append(fill(fill_words(template, free, rng), noun))
    return prompts


def _check_named(named: Sequence[str], targets: Sequence[str]) -> None:
    for name in named:
        for target in targets:
            if all(with_plurals({part}) & parts(name) for part in parts(target)):
                raise ValueError(f"cannot retain {name!r}: it asks for the target {target!r}")


@torch.no_grad()
def neighbours(
    pipe: Any, concepts: Sequence[Concept], words: Sequence[str], count: int = NEIGHBOURS
) -> list[str]:
    """The vocabulary's words nearest to the targets, by the cosine of their token embeddings.

    The table of the first text encoder's input embeddings is read; nothing is run. Words that
    begin with a target's word or the other way round, such as plurals, are left out.

    Args:
        pipe: with a `tokenizer` and a `text_encoder`.
        concepts: their targets and aliases.
        words: the vocabulary.
        count: how many.

    Raises:
        ValueError: if the pipe has no tokenizer or text encoder.
    """
    tokenizer, encoder = getattr(pipe, "tokenizer", None), getattr(pipe, "text_encoder", None)
    if tokenizer is None or encoder is None:
        raise ValueError("retain_from='neighbours' needs a tokenizer and a text_encoder")
    targets = [plain(name) for concept in concepts for name in concept.names]
    own = [part for name in targets for part in name.split()]
    others = [w for w in words if not any(w.startswith(p) or p.startswith(w) for p in own)]
    if not others:
        return []
    table = encoder.get_input_embeddings().weight.float()

    def vector(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return torch.nn.functional.normalize(table[ids].mean(0), dim=0)

    near = torch.stack([vector(word) for word in others])
    cosine = torch.stack([near @ vector(name) for name in targets]).amax(0)
    best = cosine.topk(min(count, len(others))).indices.tolist()
    return [others[i] for i in best]
