"""Slots: places in a prompt whose token embeddings are free.

A marker, a word that every tokenizer of the pipe knows as one token, stands in the prompt; hooks
on the text encoders' embedding tables put vectors in its place. The pipeline itself makes the
denoiser's conditioning of them, and what it makes is differentiable:

    vectors -> table's place -> text encoders -> conditioning of the denoiser

Textual inversion (Gal et al., arXiv 2208.01618) without a change to tokenizer or table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .recorder import TOKENIZERS, Recorder
from .words import parts, vocabulary

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Slots:
    """Free token embeddings in a pipe's prompts.

    Args:
        pipe: a diffusers pipeline with text encoders and tokenizers.
        count: how many tokens, one after the other.
        avoid: texts whose words the marker must not be.
        word: the marker's; None: one is chosen.

    Attributes:
        marker: what stands in the prompt.
        vectors: one tensor (count, width) for each text encoder, float32; they begin as the
            marker's own.

    Raises:
        ValueError: if the pipe has no text encoder, or no word is one token for all tokenizers.
    """

    def __init__(
        self, pipe: Any, count: int = 1, avoid: Sequence[str] = (), word: str | None = None
    ) -> None:
        self.count, self._pipe = count, pipe
        self._taken = {part for text in avoid for part in parts(text)}
        self._tables, tokenizers = _tables(pipe)
        if not self._tables:
            raise ValueError(f"{type(pipe).__name__} has no text encoder whose tokens are free")
        word = word or _marker(pipe, tokenizers, self._taken)
        self.marker = " ".join([word] * count)
        self._ids = [_single(tokenizer, word) for tokenizer in tokenizers]
        self.vectors = [self._rows(i, [token] * count) for i, token in enumerate(self._ids)]

    def spread(self, encoder: int) -> float:
        """Standard deviation of a table's numbers.

        Args:
            encoder: index of the text encoder.
        """
        return self._tables[encoder].weight.detach().float().std().item()

    def table(self, encoder: int, tokens: Sequence[int]) -> Tensor:
        """Embeddings of tokens, (len(tokens), width), float32.

        Args:
            encoder: index of the text encoder.
            tokens: its tokenizer's ids.
        """
        return self._rows(encoder, tokens)

    def start_at_a_word(self, generator: torch.Generator) -> None:
        """Let the vectors begin as those of a random word, not of the texts to avoid."""
        known = single_tokens(self._pipe, vocabulary(self._pipe))
        free = [ids for word, ids in known if word not in self._taken]
        ids = free[int(torch.randint(len(free), (), generator=generator))]
        self.vectors = [self.table(i, [token] * self.count) for i, token in enumerate(ids)]

    @contextmanager
    def placed(self, vectors: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Prompts with the marker get these vectors in its place.

        Args:
            vectors: one tensor (count, width) for each encoder; None: the slots' own.
        """
        with ExitStack() as stack:
            for table, token, own in zip(
                self._tables, self._ids, vectors or self.vectors, strict=True
            ):
                handle = table.register_forward_hook(self._hook(token, own))
                stack.callback(handle.remove)
            yield

    def conditioning(
        self,
        recorder: Recorder,
        prompts: Sequence[str],
        names: Sequence[str],
        vectors: Sequence[Tensor] | None = None,
    ) -> dict[str, Any]:
        """What the denoiser is given for prompts with the marker, in the vectors' autograd graph.

        Args:
            recorder: holds the pipe.
            prompts: each with the marker.
            names: the arguments that depend on the text, see `Layout`.
            vectors: see `placed`.

        Returns:
            Tensors (len(prompts), ...) by argument.

        Raises:
            ValueError: if the vectors do not reach the denoiser.
        """
        with self.placed(vectors):
            inputs = recorder.first_call(prompts, grad=True).inputs
        found = {name: inputs.get(name) for name in names}
        is_free = any(own.requires_grad for own in vectors or self.vectors)
        reached = any(torch.is_tensor(v) and v.requires_grad for v in found.values())
        if torch.is_grad_enabled() and is_free and not reached:
            raise ValueError(
                f"no gradient reaches the token embeddings of {type(recorder.pipe).__name__}: "
                "its text encoders cannot be searched"
            )
        return found

    def _hook(self, token: int, vectors: Tensor) -> Any:
        def put(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            mask = args[0] == token
            if not bool(mask.any()):
                return output
            index = (mask.cumsum(-1) - 1).clamp(min=0) % self.count
            return torch.where(mask[..., None], vectors.to(output)[index], output)

        return put

    def _rows(self, encoder: int, tokens: Sequence[int]) -> Tensor:
        weight = self._tables[encoder].weight
        index = torch.tensor(list(tokens), device=weight.device)
        return weight.detach()[index].float()


def single_tokens(pipe: Any, words: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The words that are one token for every tokenizer of the pipe, with their ids.

    Args:
        pipe: the pipeline.
        words: to choose from.
    """
    _, tokenizers = _tables(pipe)
    found = []
    for word in words:
        ids = [_single(tokenizer, word) for tokenizer in tokenizers]
        if all(token >= 0 for token in ids):
            found.append((word, tuple(ids)))
    return found


def _tables(pipe: Any) -> tuple[list[nn.Embedding], list[Any]]:
    """The embedding tables of the text encoders, and the tokenizers that go with them."""
    tables, tokenizers = [], []
    for name, other in zip(ENCODERS, TOKENIZERS, strict=True):
        encoder, tokenizer = getattr(pipe, name, None), getattr(pipe, other, None)
        if isinstance(encoder, nn.Module) and tokenizer is not None:
            tables.append(encoder.get_input_embeddings())  # type: ignore[operator]
            tokenizers.append(tokenizer)
    return tables, tokenizers


def _single(tokenizer: Any, word: str) -> int:
    """The id of a word that is one token within a sentence too; -1 if it is not."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        return -1
    within = tokenizer(f"a {word} {word}", add_special_tokens=False).input_ids
    return ids[0] if within.count(ids[0]) == 2 else -1


def _marker(pipe: Any, tokenizers: Sequence[Any], taken: set[str]) -> str:
    for word in vocabulary(pipe):
        if word not in taken and all(_single(tokenizer, word) >= 0 for tokenizer in tokenizers):
            return word
    raise ValueError(
        f"{type(pipe).__name__} has no word that is one token for all of its tokenizers"
    )
