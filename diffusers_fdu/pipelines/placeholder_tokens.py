"""Slots: places in a prompt whose token embeddings are free.

A marker word stands in the prompt; hooks on the text encoders' embedding tables put vectors in the
place of its tokens. The pipeline itself makes the denoiser's conditioning of them, and what it
makes is differentiable:

    vectors -> table's place -> text encoders -> conditioning of the denoiser

Textual inversion (Gal et al., arXiv 2208.01618) without a change to tokenizer or table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from .recorder import Recorder
from .tokenizers import WordTokens, encoders, single_tokens, vocabulary, word_tokens

FALLBACK = ("bicycle", "mountain", "window", "river", "bridge", "lamp", "cup")
"""Words for pipes whose tokenizer has no whole ones."""


class PlaceholderTokens:
    """Free token embeddings in a pipe's prompts.

    Args:
        pipe: a diffusers pipeline with text encoders and tokenizers.
        count: how many markers, one after the other.
        avoid: texts that must not hold the marker.
        word: the marker's; None: one is chosen that has few tokens.

    Attributes:
        marker: what stands in the prompt.
        vectors: one tensor (count * tokens of the marker, width) for each text encoder, float32;
            they begin as the marker's own.

    Raises:
        ValueError: if the pipe has no text encoder, or no word can be the marker.
    """

    def __init__(
        self, pipe: Any, count: int = 1, avoid: Sequence[str] = (), word: str | None = None
    ) -> None:
        self.count, self._pipe, self._avoid = count, pipe, [text.lower() for text in avoid]
        self._tables, self._tokenizers = encoders(pipe)
        if not self._tables:
            raise ValueError(f"{type(pipe).__name__} has no text encoder whose tokens are free")
        word = word or self._chosen()
        self.marker = " ".join([word] * count)
        self._pieces = [_said(tokenizer, word) for tokenizer in self._tokenizers]
        self.vectors = [self.table(i, p.within * count) for i, p in enumerate(self._pieces)]

    def _chosen(self) -> str:
        """A word of few tokens that is in none of the texts to avoid."""
        best, least = None, 0
        for word in [*vocabulary(self._pipe), *FALLBACK]:
            if any(word in text for text in self._avoid):
                continue
            found = [word_tokens(tokenizer, word) for tokenizer in self._tokenizers]
            if None in found:
                continue
            size = max(len(one.within) for one in found if one is not None)
            if best is None or size < least:
                best, least = word, size
            if least == 1:
                break
        if best is None:
            raise ValueError(f"{type(self._pipe).__name__} has no word that could be a marker")
        return best

    def table(self, encoder: int, tokens: Sequence[int]) -> Tensor:
        """Embeddings of tokens, (len(tokens), width), float32.

        Args:
            encoder: index of the text encoder.
            tokens: its tokenizer's ids.
        """
        weight = self._tables[encoder][0].weight
        index = torch.tensor(list(tokens), device=weight.device)
        return weight.detach()[index].float()

    def spread(self, encoder: int) -> float:
        """Standard deviation of a table's numbers.

        Args:
            encoder: index of the text encoder.
        """
        return self._tables[encoder][0].weight.detach().float().std().item()

    def start_at_a_word(self, generator: torch.Generator) -> None:
        """Let the vectors begin as those of a random word that is in no text to avoid."""
        words = [word for word, _ in single_tokens(self._pipe, vocabulary(self._pipe))]
        free = [w for w in words or FALLBACK if not any(w in text for text in self._avoid)]
        word = free[int(torch.randint(len(free), (), generator=generator))]
        for i, (tokenizer, piece) in enumerate(zip(self._tokenizers, self._pieces, strict=True)):
            own = tokenizer(word, add_special_tokens=False).input_ids
            filled = list(islice(cycle(own), len(piece.within)))
            self.vectors[i] = self.table(i, filled * self.count)

    @contextmanager
    def placed(self, vectors: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Prompts with the marker get these vectors in its place.

        Args:
            vectors: one tensor for each encoder; None: the slots' own.
        """
        with ExitStack() as stack:
            for table, piece, own in zip(
                self._tables, self._pieces, vectors or self.vectors, strict=True
            ):
                for module in table:
                    handle = module.register_forward_hook(self._hook(piece, own))
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
            names: the arguments that depend on the text, see `CallSignature`.
            vectors: see `placed`.

        Returns:
            Tensors, or lists of them, of len(prompts) rows by argument.

        Raises:
            ValueError: if the vectors do not reach the denoiser.
        """
        with self.placed(vectors):
            inputs = recorder.first_call(prompts, grad=True).inputs
        found = {name: inputs.get(name) for name in names}
        is_free = any(own.requires_grad for own in vectors or self.vectors)
        if torch.is_grad_enabled() and is_free and not any(map(_is_reached, found.values())):
            raise ValueError(
                f"no gradient reaches the token embeddings of {type(recorder.pipe).__name__}: "
                "its text encoders cannot be searched"
            )
        return found

    def _hook(self, piece: WordTokens, vectors: Tensor) -> Any:
        def put(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            index = self._places(args[0], piece)
            if not bool((index >= 0).any()):
                return output
            chosen = vectors.to(output)[index.clamp(min=0)]
            return torch.where((index >= 0)[..., None], chosen, output)

        return put

    def _places(self, ids: Tensor, piece: WordTokens) -> Tensor:
        """Which vector goes where, -1: none, as ids, (B, L)."""
        size = len(piece.within)
        index = torch.full_like(ids, -1)
        if ids.shape[-1] < size:
            return index
        windows = ids.unfold(-1, size, 1)
        forms = [torch.tensor(form, device=ids.device) for form in (piece.within, piece.first)]
        is_start = (windows == forms[0]).all(-1) | (windows == forms[1]).all(-1)
        ordinal = (is_start.cumsum(-1) - 1) % self.count
        for offset in range(size):
            place = index[..., offset : offset + is_start.shape[-1]]
            place[is_start] = (ordinal * size + offset)[is_start]
        return index


def _said(tokenizer: Any, word: str) -> WordTokens:
    """How a tokenizer writes a marker.

    Raises:
        ValueError: if it writes it differently from place to place.
    """
    found = word_tokens(tokenizer, word)
    if found is None:
        raise ValueError(f"{word!r} cannot be a marker: its tokens depend on where it stands")
    return found


def _is_reached(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_reached, value))
    return torch.is_tensor(value) and value.requires_grad
