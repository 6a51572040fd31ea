"""What must stay: prompts whose pictures are held to the frozen model's."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from .concepts import TEMPLATES, Concept
from .templates import fill, fill_words, parts, with_plurals, without


def retain_prompts(
    concepts: Sequence[Concept],
    retain: Sequence[str] | None,
    count: int,
    words: Sequence[str],
    rng: random.Random,
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
    templates = [c.usable_templates(free) for c in concepts if c.kind != "prompt"]
    templates = templates or [[t for t in TEMPLATES["object"] if free or "{word}" not in t]]
    prompts = []
    for i in range(count):
        subject = rng.choice(subjects)
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
