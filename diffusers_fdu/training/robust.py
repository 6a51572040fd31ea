"""Robust unlearning: embeddings that still bring a concept back are looked for and unlearned, too.

    min over theta  E D_f(eps_theta(x_t, c(v*), t), eps(x_t, c_anchor, t))
    v* = argmin_v  E || eps_theta(x_t, c(v), t) - eps(x_t, c_target, t) ||^2

over states x_t of the original model's pictures of the target. Every few steps of the training v*
is searched for anew (`inversion`) and half of the rows to unlearn are asked with all that were
found.
After AdvUnlearn (Zhang et al., arXiv 2405.15234) and STEREO (Srivatsan et al., arXiv 2408.16807),
here under any divergence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from ..adapters.target_modules import has_cross_attention
from ..config import Robust
from ..data.concepts import Concept, Pair
from ..data.recording import record
from ..data.replay_buffer import Entry, ReplayBuffer
from ..data.teacher import ask, negative_guidance
from ..pipelines.placeholder_tokens import PlaceholderTokens
from ..pipelines.recorder import Recorder, preserve_pipeline_state, select_row
from ..utils.distributed import Processes
from .inversion import Goal, Inversion


def expose(
    recorder: Recorder,
    pairs: Sequence[Pair],
    names: Sequence[str],
    buffer: ReplayBuffer,
    robust: Robust,
    progress: bool = True,
    processes: Processes | None = None,
) -> None:
    """Record what an adversary wants, and what it shall get.

    The rows "attacked" join a state of the original's pictures of a target with its answer there;
    the rows "hidden" the same state with its answer to the anchor. Their text is that of the
    target's prompt with a marker in the place of its name, which `PlaceholderTokens` fills with
    embeddings.

    Args:
        recorder: of the frozen pipe.
        pairs: prompts of the targets, some for each concept.
        names: of each concept's target, which the marker replaces; one a concept.
        buffer: gets the rows.
        robust: how many pictures.
        progress: show a progress bar.
        processes: share the recording.

    Raises:
        ValueError: see `PlaceholderTokens` and `record`.
    """
    slots = PlaceholderTokens(recorder.pipe, robust.tokens, [pair.target for pair in pairs])
    buffer.marker = slots.marker
    asked = [
        pair._replace(
            target=pair.target.replace(names[pair.concept], slots.marker),
            anchor=pair.target,
            guidance=None,
        )
        for pair in pairs
    ]
    total = robust.pictures * len(names)
    wanted = list(islice(cycle(asked), total))
    found = record(
        recorder,
        wanted,
        [],
        buffer.dtype,
        progress,
        processes=processes or Processes(),
        keep_texts=has_cross_attention(recorder.model),
    )
    found.clear("retain")
    found.recast("unlearn", "attacked")
    with preserve_pipeline_state(recorder.pipe):
        _answer(recorder, found, dict(zip((one.target for one in asked), pairs, strict=True)))
    buffer.absorb(found)


def expose_concepts(
    recorder: Recorder,
    concepts: Sequence[Concept],
    words: Sequence[str],
    buffer: ReplayBuffer,
    robust: Robust,
    seed: int,
    progress: bool = True,
    processes: Processes | None = None,
) -> None:
    """`expose` for prompts of every concept.

    Args:
        recorder: of the frozen pipe.
        concepts: what is to be forgotten.
        words: that their templates are filled with.
        buffer: gets the rows.
        robust: how many prompts and pictures.
        seed: of the prompts.
        progress: show a progress bar.
        processes: share the recording.

    Raises:
        ValueError: see `expose`.
    """
    rng = random.Random(seed)
    found = [replace(concept, aliases=()) for concept in concepts]
    pairs = [
        pair
        for i, concept in enumerate(found)
        for pair in concept.prompt_pairs(robust.prompts, words, rng, i)
    ]
    names = [concept.target for concept in found]
    expose(recorder, pairs, names, buffer, robust, progress, processes)


def _answer(recorder: Recorder, found: ReplayBuffer, pairs: dict[str, Pair]) -> None:
    """Add the rows "hidden": what the frozen model answers to the anchors."""
    rows = found.entries("attacked")
    wanted = [pairs[found.prompt(row.text)] for row in rows]
    names = found.text_names
    prompts = list(dict.fromkeys(pair.anchor for pair in wanted))
    texts = recorder.conditioning(prompts, names)
    index = {prompt: found.add_text(prompt, texts[prompt]) for prompt in prompts}
    entries = [
        row._replace(text=index[pair.anchor]) for row, pair in zip(rows, wanted, strict=True)
    ]
    answers = ask(recorder.model, found, entries, 2 * recorder.micro.size)
    for row, pair, answer in zip(rows, wanted, answers, strict=True):
        if pair.guidance is not None:
            own = found.predictions([row])[0].float()
            answer = negative_guidance(own, answer, pair.guidance)
        kept = found.add_prediction(answer)
        found.add_row("hidden", row.state, row.text, kept, row.concept)


class Adversary:
    """Every few steps finds embeddings that bring a concept back, and adds rows against them.

    Args:
        model: the denoiser, the adapter active.
        recorder: of its pipe, whose text encoders are where they can be asked.
        buffer: with what `expose` recorded; gets rows "adversarial".
        robust: how.
        seed: of the searches.
        processes: all take what the main one found.
        autocast: precision of the denoiser.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        buffer: ReplayBuffer,
        robust: Robust,
        seed: int,
        processes: Processes | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.recorder, self.buffer = model, recorder, buffer
        self.robust, self.processes = robust, processes or Processes()
        self.autocast = autocast
        self.slots = PlaceholderTokens(recorder.pipe, robust.tokens, word=buffer.marker.split()[0])
        self.search = Inversion(robust.steps, robust.batch)
        self.generator = torch.Generator().manual_seed(seed)
        self.found: list[tuple[str, int, dict[str, Any]]] = []
        self.names = buffer.text_names

    def __call__(self, step: int) -> None:
        """Search if it is time."""
        if step % self.robust.every:
            return
        attacked = self.buffer.entries("attacked")
        with preserve_pipeline_state(self.recorder.pipe):
            for concept in sorted({row.concept for row in attacked}):
                self._attack([row for row in attacked if row.concept == concept], step)

    def _attack(self, rows: Sequence[Entry], step: int) -> None:
        places = {text: k for k, text in enumerate(sorted({row.text for row in rows}))}
        marked = [self.buffer.prompt(text) for text in places]
        goal = Goal(self.buffer, rows, self.names, lambda row: places[row.text])
        self.slots.start_at_random_word(self.generator)
        vectors = self.search(
            self.model, self.slots, self.recorder, marked, goal, self.generator, self.autocast
        )
        self.processes.agree_(vectors)
        with torch.no_grad():
            inputs = self.slots.conditioning(self.recorder, marked, self.names, vectors)
        for text, k in places.items():
            self._add(f"\0adversary {step} {text}", text, select_row(inputs, self.names, k))

    def _add(self, name: str, text: int, leaves: dict[str, Any]) -> None:
        """Ask the states of one prompt with what was found, too."""
        self.found.append((name, text, leaves))
        new = self.buffer.add_text(name, leaves)
        for row in self.buffer.entries("hidden"):
            if row.text == text:
                self.buffer.add_row("adversarial", row.state, new, row.prediction, row.concept)

    def state_dict(self) -> dict[str, Any]:
        """What was found, and what the next searches depend on, for a checkpoint."""
        return {"generator": self.generator.get_state(), "found": list(self.found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as from that state."""
        self.generator.set_state(state["generator"])
        self.buffer.clear("adversarial")
        self.found = []
        for name, text, leaves in state["found"]:
            self._add(name, text, leaves)
