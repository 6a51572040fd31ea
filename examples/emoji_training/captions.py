"""Captions of the training images, and the tokenizer that reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from diffusers_fdu.emoji.vocabulary import BACKGROUNDS, CONCEPTS, STYLES, SYNONYMS, caption

MAX_TOKENS = 32
PICTURE = ("picture", "photo", "drawing", "painting")
START, END = "<|startoftext|>", "<|endoftext|>"


def random_caption(concept: int, style: int, background: int, rng: random.Random) -> str:
    """A caption for an image, with parts dropped at random; 10 % are empty.

    Every part that is said is true of the image. Concepts go by a synonym now and then.
    """
    if rng.random() < 0.1:
        return ""
    word = CONCEPTS[concept]
    if word in SYNONYMS and rng.random() < 0.15:
        word = rng.choice(SYNONYMS[word])
    style_word = STYLES[style] if rng.random() < 0.8 else None
    background_word = BACKGROUNDS[background] if rng.random() < 0.5 else None
    text = caption(word, style_word, background_word)
    form = rng.random()
    if form < 0.1:
        text = text.replace(" emoji", "", 1)
    elif form < 0.2:
        text = f"a {rng.choice(PICTURE)} of {text}".replace(" emoji", "", 1)
    elif form < 0.25 and (style_word or background_word):
        text = text.replace(f"{'an' if word[0] in 'aeiou' else 'a'} {word} emoji", "an emoji", 1)
    return text


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the captions is one token.

    Byte-pair merges are learned from the vocabulary alone; other words split into letters.
    """
    synonyms = [word for words in SYNONYMS.values() for word in words]
    words = [*CONCEPTS, *STYLES, *BACKGROUNDS, *synonyms]
    words += ["a", "an", "emoji", "in", "style", "on", "background", "of", "the", *PICTURE]
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
    )
    raw.train_from_iterator([*words, *letters], trainer)
    learned = json.loads(raw.to_str())["model"]
    vocab = sorted(learned["vocab"], key=learned["vocab"].get)
    vocab += [f"{c}</w>" for c in letters if f"{c}</w>" not in learned["vocab"]]
    merges = [" ".join(m) if isinstance(m, list) else m for m in learned["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*vocab, START, END]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
