"""Robust unlearning: embeddings that still bring a concept back are looked for and unlearned, too.

    min over theta  E D_f(eps_theta(x_t, c(v*), t), eps(x_t, c_anchor, t))
    v* = argmin_v  E || eps_theta(x_t, c(v), t) - eps(x_t, c_target, t) ||^2

over states x_t of the original model's pictures of the target. Every few steps of the training v*
is searched for anew (`inversion`), and half of the rows to unlearn are asked with all embeddings
that were found. After AdvUnlearn (Zhang et al., arXiv 2405.15234) and STEREO (Srivatsan et al.,
arXiv 2408.16807), here under any divergence.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from ..config import Robust
from ..data.concepts import Pair
from ..data.plan import RecordingPlan
from ..data.recording import record
from ..data.replay_buffer import Entry, ReplayBuffer
from ..data.teacher import ask, negative_guidance
from ..pipelines.placeholder_tokens import PlaceholderTokens
from ..pipelines.recorder import Recorder, preserve_pipeline_state, select_row
from ..settings import Settings
from ..utils.distributed import Processes
from .acceleration import precision
from .inversion import Goal, Inversion


def record_attacks(plan: RecordingPlan, robust: Robust, buffer: ReplayBuffer) -> None:
    """Record what an adversary wants, and what it shall get, for every concept of the plan.

    The rows "attacked" join a state of the original's pictures of a target with its answer there;
    the rows "hidden" the same state with its answer to the anchor. Their text is that of the
    target's prompt with a marker in the place of its name, which `PlaceholderTokens` fills with
    embeddings.
    """
    context, recorder = plan.context, plan.recorder()
    rng = random.Random(context.settings.train.seed)
    concepts = [replace(concept, aliases=()) for concept in plan.concepts]
    pairs: list[Pair] = []
    for i, concept in enumerate(concepts):
        pairs += concept.prompt_pairs(robust.prompts, plan.words, rng, i)
    slots = PlaceholderTokens(recorder.pipe, robust.tokens, [pair.target for pair in pairs])
    buffer.marker = slots.marker
    marked = [pair.target.replace(concepts[pair.concept].target, slots.marker) for pair in pairs]
    # The target's own prompt is what is drawn, and the marked one what its states are kept with.
    attacks = [
        pair._replace(target=prompt, anchor=pair.target, guidance=None)
        for pair, prompt in zip(pairs, marked, strict=True)
    ]
    drawn = list(islice(cycle(attacks), robust.pictures * len(concepts)))
    dtype, processes, keep_texts = buffer.dtype, context.processes, plan.keep_texts
    recorded = record(
        recorder, drawn, [], dtype, context.progress, processes, keep_texts=keep_texts
    )
    recorded.clear("retain")
    recorded.recast("unlearn", "attacked")
    with preserve_pipeline_state(recorder.pipe):
        _add_hidden(recorder, recorded, dict(zip(marked, pairs, strict=True)))
    buffer.absorb(recorded)


def _add_hidden(recorder: Recorder, recorded: ReplayBuffer, pairs: Mapping[str, Pair]) -> None:
    """Add the rows "hidden": what the frozen model answers to the anchor of each marked prompt."""
    rows = recorded.entries("attacked")
    pair_of_row = [pairs[recorded.prompt(row.text)] for row in rows]
    names = recorded.text_names
    anchors = list(dict.fromkeys(pair.anchor for pair in pair_of_row))
    leaves = recorder.conditioning(anchors, names)
    texts = {anchor: recorded.add_text(anchor, leaves[anchor]) for anchor in anchors}
    entries = [
        row._replace(text=texts[pair.anchor]) for row, pair in zip(rows, pair_of_row, strict=True)
    ]
    answers = ask(recorder.model, recorded, entries, 2 * recorder.micro.size)
    for row, pair, answer in zip(rows, pair_of_row, answers, strict=True):
        if pair.guidance is not None:
            target_answer = recorded.predictions([row])[0].float()
            answer = negative_guidance(target_answer, answer, pair.guidance)
        prediction = recorded.add_prediction(answer)
        recorded.add_row("hidden", row.state, row.text, prediction, row.concept)


class Adversary:
    """Every few steps finds embeddings that bring a concept back, and adds rows against them.

    The adapter is active on the model. The buffer holds what `record_attacks` recorded, and gets
    the rows "adversarial"; all processes take what the main one found.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        buffer: ReplayBuffer,
        settings: Settings,
        processes: Processes,
    ) -> None:
        robust = settings.data.defence or Robust()
        self.model, self.recorder, self.buffer = model, recorder, buffer
        self.every, self.processes = robust.every, processes
        self.autocast, _ = precision(model, settings.performance.mixed_precision)
        self.slots = PlaceholderTokens(recorder.pipe, robust.tokens, word=buffer.marker.split()[0])
        self.search = Inversion(robust.steps, robust.batch)
        self.generator = torch.Generator().manual_seed(settings.train.seed)
        self.attacks: list[tuple[str, int, dict[str, Any]]] = []
        self.names = buffer.text_names

    def __call__(self, step: int) -> None:
        """Search if it is time."""
        if step % self.every:
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
        self.processes.broadcast_(vectors)
        with torch.no_grad():
            inputs = self.slots.conditioning(self.recorder, marked, self.names, vectors)
        for text, k in places.items():
            self._add(f"\0adversary {step} {text}", text, select_row(inputs, self.names, k))

    def _add(self, name: str, text: int, leaves: dict[str, Any]) -> None:
        """Ask the states of one prompt with what was found, too."""
        self.attacks.append((name, text, leaves))
        found_text = self.buffer.add_text(name, leaves)
        for state, hidden_text, prediction, concept in self.buffer.entries("hidden"):
            if hidden_text == text:
                self.buffer.add_row("adversarial", state, found_text, prediction, concept)

    def state_dict(self) -> dict[str, Any]:
        """What was found, and what the next searches depend on."""
        return {"generator": self.generator.get_state(), "found": list(self.attacks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as from that state."""
        self.generator.set_state(state["generator"])
        self.buffer.clear("adversarial")
        self.attacks = []
        for name, text, leaves in state["found"]:
            self._add(name, text, leaves)
