"""Placeholders: places in a prompt whose token embeddings are free.

A marker word stands in the prompt; hooks on the text encoders' embedding tables put vectors in the
place of its tokens. The pipeline itself makes the denoiser's conditioning of them, and what it
makes is differentiable:

    vectors -> table's place -> text encoders -> conditioning of the denoiser

Textual inversion (Gal et al., arXiv 2208.01618) without a change to tokenizer or table.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from .recorder import Recorder
from .tokenizers import WordTokens, single_tokens, text_encoders, vocabulary, word_tokens

FALLBACK = ("bicycle", "mountain", "window", "river", "bridge", "lamp", "cup")
"""Words for pipes whose tokenizer has no whole ones."""


class PlaceholderTokens:
    """Free token embeddings in a pipe's prompts.

    `marker` is what stands in the prompt: `count` times the same word, one after the other, by
    default one of few tokens that is in no text of `avoid`. `vectors` are one tensor (count *
    tokens of the word, width) for each text encoder, float32, which begin as the word's own. A
    pipe without text encoders, or without a word that could be the marker, gives a ValueError.
    """

    def __init__(
        self, pipe: Any, count: int = 1, avoid: Sequence[str] = (), word: str | None = None
    ) -> None:
        self.count, self._pipe, self._avoid = count, pipe, [text.lower() for text in avoid]
        self._tables, self._tokenizers = text_encoders(pipe)
        if not self._tables:
            raise ValueError(f"{type(pipe).__name__} has no text encoder whose tokens are free")
        word = word or self._shortest_word()
        self.marker = " ".join([word] * count)
        self._tokens: list[WordTokens] = []
        for tokenizer in self._tokenizers:
            tokens = word_tokens(tokenizer, word)
            if tokens is None:
                raise ValueError(f"{word!r} cannot be a marker: its tokens depend on the place")
            self._tokens.append(tokens)
        self.vectors = [self.embeddings(i, t.within * count) for i, t in enumerate(self._tokens)]

    def _shortest_word(self) -> str:
        """The first of the words with fewest tokens, among those that are in no text to avoid."""
        shortest: dict[int, str] = {}
        for word in filter(self._is_free, [*vocabulary(self._pipe), *FALLBACK]):
            tokens = [word_tokens(tokenizer, word) for tokenizer in self._tokenizers]
            if None not in tokens:
                length = max(len(t.within) for t in tokens if t is not None)
                shortest.setdefault(length, word)
                if length == 1:
                    break
        if not shortest:
            raise ValueError(f"{type(self._pipe).__name__} has no word that could be a marker")
        return shortest[min(shortest)]

    def _is_free(self, word: str) -> bool:
        return not any(word in text for text in self._avoid)

    def embeddings(self, encoder: int, tokens: Sequence[int]) -> Tensor:
        """Embeddings of tokens of the encoder with this index, (len(tokens), width), float32."""
        weight = self._tables[encoder][0].weight
        index = torch.tensor(list(tokens), device=weight.device)
        return weight.detach()[index].float()

    def embedding_std(self, encoder: int) -> float:
        """Standard deviation of the numbers in the embedding table of an encoder."""
        return self._tables[encoder][0].weight.detach().float().std().item()

    def start_at_random_word(self, generator: torch.Generator) -> None:
        """Let the vectors begin as those of a random word that is in no text to avoid."""
        words = [word for word, _ in single_tokens(self._pipe, vocabulary(self._pipe))]
        free_words = [word for word in words or FALLBACK if self._is_free(word)]
        word = free_words[int(torch.randint(len(free_words), (), generator=generator))]
        for i, tokens in enumerate(self._tokens):
            ids = self._tokenizers[i](word, add_special_tokens=False).input_ids
            repeated = list(islice(cycle(ids), len(tokens.within)))
            self.vectors[i] = self.embeddings(i, repeated * self.count)

    @contextmanager
    def substituted(self, vectors: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Put vectors in the marker's place in prompts; by default those of the placeholders."""
        with ExitStack() as stack:
            for i, encoder_vectors in enumerate(vectors or self.vectors):
                hook = partial(self._put, self._tokens[i], encoder_vectors)
                for module in self._tables[i]:
                    stack.enter_context(module.register_forward_hook(hook))
            yield

    def conditioning(
        self,
        recorder: Recorder,
        prompts: Sequence[str],
        names: Sequence[str],
        vectors: Sequence[Tensor] | None = None,
    ) -> dict[str, Any]:
        """What the denoiser is given for prompts with the marker, in the vectors' autograd graph.

        `names` are the arguments that depend on the text; each is a tensor, or a list of them, of
        len(prompts) rows. If the vectors do not reach the denoiser, that is a ValueError.
        """
        with self.substituted(vectors):
            inputs = recorder.first_call(prompts, grad=True).inputs
        texts = {name: inputs.get(name) for name in names}
        is_free = any(tensor.requires_grad for tensor in vectors or self.vectors)
        values = [v for t in texts.values() for v in (t if isinstance(t, list | tuple) else [t])]
        is_reached = any(torch.is_tensor(value) and value.requires_grad for value in values)
        if torch.is_grad_enabled() and is_free and not is_reached:
            raise ValueError(
                f"no gradient reaches the token embeddings of {type(recorder.pipe).__name__}: "
                "its text encoders cannot be searched"
            )
        return texts

    def _put(
        self, tokens: WordTokens, vectors: Tensor, table: nn.Module, args: tuple, output: Tensor
    ) -> Tensor:
        index = self._places(args[0], tokens)
        if not bool((index >= 0).any()):
            return output
        rows = vectors.to(output)[index.clamp(min=0)]
        return torch.where((index >= 0)[..., None], rows, output)

    def _places(self, ids: Tensor, tokens: WordTokens) -> Tensor:
        """Which vector goes where, as ids, (B, L); -1 where none goes.

        Every window of the word's length is compared with the word. The n-th match is marker n mod
        count, however often all markers come; its vectors go to its tokens one by one.
        """
        size = len(tokens.within)
        index = torch.full_like(ids, -1)
        if ids.shape[-1] < size:
            return index
        windows = ids.unfold(-1, size, 1)
        forms = [torch.tensor(form, device=ids.device) for form in (tokens.within, tokens.first)]
        is_start = (windows == forms[0]).all(-1) | (windows == forms[1]).all(-1)
        ordinal = (is_start.cumsum(-1) - 1) % self.count
        for offset in range(size):
            place = index[..., offset : offset + is_start.shape[-1]]
            place[is_start] = (ordinal * size + offset)[is_start]
        return index
