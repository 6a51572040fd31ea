"""Record what a frozen pipeline does: its own denoiser calls, by hook, while it draws.

The pipeline is the source of truth for how its denoiser is called. Its calls on the anchor's
prompts are recorded as keyword arguments; those that depend on the text are found by comparing
two prompts, and swapped for the target's. So nothing about prompt embeddings, added conditions
or guidance is rebuilt here, and the teacher costs nothing once training starts.

In a guided run the rows that carry the prompt's own conditioning answer for the anchor; the
others answer for the empty (or negative) prompt and are kept as something to retain.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .replay import Leaves, ReplayBuffer, flatten

BATCH = 8  # images drawn at once
STEPS = 8
"""Most steps of a recorded run; runs have between half of them and all.

Each length visits its own timesteps. Many prompts of few steps erase more, and spare more, than
few prompts of many steps at the same cost (docs/benchmarks.md).
"""
OTHER_EVERY = 4  # one call in so many keeps the rows of the empty prompt, which is one prompt
GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread evenly over [0, 1) however many there are
CLOSE = 0.01  # one text encoded twice differs by rounding, relative; two texts by far more


class _Stop(BaseException):
    """Leaves a pipeline after its first denoiser call; no `except Exception` catches it."""


@dataclass
class Call:
    """One denoiser call: keyword arguments with dotted names, and the prediction."""

    inputs: dict[str, Any]
    prediction: Tensor | None = None


def denoiser_name(pipe: Any) -> str:
    """The pipe's attribute that holds its denoiser: "unet" or "transformer".

    Raises:
        ValueError: if the pipe has neither.
    """
    for name in ("unet", "transformer"):
        if isinstance(getattr(pipe, name, None), nn.Module):
            return name
    raise ValueError(
        f"{type(pipe).__name__} has no denoiser: expected a diffusers pipeline with a `unet` "
        "or a `transformer`"
    )


@contextmanager
def untouched(pipe: Any) -> Iterator[None]:
    """Give the pipe's scheduler, progress-bar settings and the global RNG back as they were."""
    scheduler, missing = getattr(pipe, "scheduler", None), object()
    bar = pipe.__dict__.get("_progress_bar_config", missing)
    bar = dict(bar) if isinstance(bar, dict) else bar
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            if scheduler is not None:
                pipe.scheduler = copy.deepcopy(scheduler)
            pipe.set_progress_bar_config(disable=True)
            yield
    finally:
        if scheduler is not None:
            pipe.scheduler = scheduler
        if bar is missing:
            pipe.__dict__.pop("_progress_bar_config", None)
        else:
            pipe._progress_bar_config = bar


@contextmanager
def _hooked(model: nn.Module, on_call: Callable[[Call], None], stop: bool) -> Iterator[None]:
    signature = inspect.signature(model.forward)
    pending: list[Call] = []

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = signature.bind(*args, **kwargs).arguments
        bound.update(bound.pop("kwargs", {}))
        inputs = flatten(bound)
        kept = {k: v.detach().clone() if torch.is_tensor(v) else v for k, v in inputs.items()}
        pending[:] = [Call(kept)]
        if stop:
            on_call(pending.pop())
            raise _Stop

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        call = pending.pop()
        call.prediction = output[0].detach()
        on_call(call)

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Recorder:
    """Runs a pipeline under hooks.

    Args:
        pipe: a diffusers pipeline with a `unet` or a `transformer`.
        pipeline_kwargs: arguments of the recorded runs, such as height or guidance_scale.
        seed: of the initial noise.

    Raises:
        ValueError: if the pipe has no denoiser.
    """

    def __init__(
        self, pipe: Any, pipeline_kwargs: dict[str, Any] | None = None, seed: int = 0
    ) -> None:
        self.pipe = pipe
        self.model: nn.Module = getattr(pipe, denoiser_name(pipe))
        self.kwargs = dict(pipeline_kwargs or {})
        self.seed = seed
        self._parameters = inspect.signature(pipe.__call__).parameters
        default = getattr(self._parameters.get("num_inference_steps"), "default", STEPS)
        self.steps = self.kwargs.pop("num_inference_steps", None) or min(default, STEPS)
        self._text_names: list[str] | None = None

    @torch.no_grad()
    def _run(self, prompts: Sequence[str], on_call: Callable, seed: int, **extra: Any) -> None:
        stop = extra.pop("stop", False)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        arguments = {**self.kwargs, "output_type": "latent", "generator": generators, **extra}
        with _hooked(self.model, on_call, stop):
            try:
                self.pipe(prompt=list(prompts), **arguments)
            except _Stop:
                pass

    def _first_call(self, prompts: Sequence[str]) -> Call:
        """The first denoiser call without guidance: one row a prompt."""
        off = {k: 1.0 for k in ("guidance_scale", "true_cfg_scale") if k in self._parameters}
        calls: list[Call] = []
        self._run(prompts, calls.append, self.seed, stop=True, num_inference_steps=2, **off)
        return calls[0]

    def check_lengths(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the pipe's tokenizer would cut.

        Raises:
            ValueError: with the prompt and the limit.
        """
        tokenizer = getattr(self.pipe, "tokenizer", None)
        limit = getattr(tokenizer, "model_max_length", None)
        if tokenizer is None or limit is None or limit > 100_000:
            return
        for prompt in dict.fromkeys(prompts):
            length = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if length > limit:
                raise ValueError(
                    f"prompt {prompt!r} has {length} tokens, the tokenizer takes {limit}: "
                    "shorten it, or the concept it is about"
                )

    def text_names(self, prompt: str, other: str) -> list[str]:
        """Names of the arguments that depend on the text: those in which two prompts differ.

        Raises:
            ValueError: if nothing differs.
        """
        a, b = self._first_call([prompt]).inputs, self._first_call([other]).inputs
        names = [k for k, v in a.items() if torch.is_tensor(v) and not _same(v, b[k])]
        if not names:
            raise ValueError(
                f"the pipeline gives {prompt!r} and {other!r} the same conditioning: "
                "the tokenizer does not tell them apart"
            )
        return names

    def conditioning(self, prompts: Sequence[str], names: Sequence[str]) -> dict[str, Leaves]:
        """Text-dependent arguments of each prompt, without batch dimension."""
        texts: dict[str, Leaves] = {}
        unique = list(dict.fromkeys(prompts))
        for start in range(0, len(unique), BATCH):
            part = unique[start : start + BATCH]
            inputs = self._first_call(part).inputs
            for i, prompt in enumerate(part):
                texts[prompt] = {name: inputs[name][i] for name in names}
        return texts


def record(
    recorder: Recorder,
    pairs: Sequence[tuple[str, str]],
    retain: Sequence[str],
    dtype: torch.dtype = torch.float16,
    progress: bool = True,
) -> ReplayBuffer:
    """Run the frozen pipeline on anchors and retained prompts, and keep what its denoiser did.

    Args:
        recorder: holds the pipeline.
        pairs: (target prompt, anchor prompt): each anchor is drawn once, and its states are
            kept with the target's conditioning ("unlearn") and with its own ("retain").
        retain: prompts drawn once each, kept with their own conditioning.
        dtype: in which states and predictions are kept.
        progress: show a progress bar.

    Returns:
        The buffer. The pipe's scheduler, progress-bar settings, hooks and the global RNG are
        as before, also after an exception.

    Raises:
        ValueError: if a prompt is longer than the tokenizer takes, or if target and anchor get
            the same conditioning.
    """
    if not pairs:
        raise ValueError("no prompts to record")
    runs: list[tuple[str, str | None]] = [(anchor, target) for target, anchor in pairs]
    runs += [(prompt, None) for prompt in retain]
    prompts = [prompt for run in runs for prompt in run if prompt is not None]
    recorder.check_lengths(prompts)
    buffer = ReplayBuffer(dtype)
    batches = [part for group in _grouped(runs) for part in _chunks(group, BATCH)]
    with untouched(recorder.pipe):
        names = recorder.text_names(*pairs[0])
        texts = recorder.conditioning(prompts, names)
        low, high = (recorder.steps + 1) // 2, recorder.steps
        with tqdm(total=len(runs), desc="record", disable=not progress, unit="image") as bar:
            for i, part in enumerate(batches):
                steps = low + int(i * GOLDEN % 1 * (high - low + 1))
                _record_batch(recorder, buffer, part, texts, steps, i)
                bar.update(len(part))
                bar.set_postfix(MB=f"{buffer.nbytes / 1e6:.1f}")
    if not buffer.count("unlearn"):
        raise ValueError(
            f"{type(recorder.pipe).__name__} never called its denoiser with the conditioning of "
            "the prompts alone: this pipeline cannot be recorded"
        )
    return buffer


def _grouped(runs: list[tuple[str, str | None]]) -> list[list[tuple[str, str | None]]]:
    return [[r for r in runs if r[1] is not None], [r for r in runs if r[1] is None]]


def _chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _record_batch(
    recorder: Recorder,
    buffer: ReplayBuffer,
    runs: list[tuple[str, str | None]],
    texts: dict[str, Leaves],
    steps: int,
    number: int,
) -> None:
    prompts = [prompt for prompt, _ in runs]
    size = len(prompts)
    names = list(texts[prompts[0]])
    own = recorder._first_call(prompts).inputs
    latest: dict[str, Any] = {}
    calls = number  # so that the empty prompt is kept at other steps in each batch

    def on_call(call: Call) -> None:
        nonlocal calls
        is_kept, calls = calls % OTHER_EVERY == 0, calls + 1
        inputs, prediction = call.inputs, call.prediction
        assert prediction is not None  # only a stopped call has none
        rows = len(prediction)
        state, constants = _split_inputs(inputs, names, rows)
        buffer.constants.update(constants)
        for start in range(0, rows, size):
            block = slice(start, start + size)
            conditional = all(_close(inputs[name][block], own[name]) for name in names)
            # Both halves of a guided step share x_t: keep it once.
            key = {name: value[block] for name, value in state.items()}
            if not latest or not all(_same(latest["key"][n], v) for n, v in key.items()):
                latest["key"] = key
                latest["ids"] = [
                    buffer.add_state({n: v[i] for n, v in key.items()}) for i in range(size)
                ]
            for i, (prompt, target) in enumerate(runs):
                row = {name: inputs[name][start + i] for name in names}
                where = latest["ids"][i]
                if not conditional:
                    if is_kept:
                        answer = buffer.add_prediction(prediction[start + i])
                        buffer.add_row("retain", where, _add_other(buffer, row), answer)
                    continue
                answer = buffer.add_prediction(prediction[start + i])
                buffer.add_row("retain", where, buffer.add_text(prompt, row), answer)
                if target is not None:
                    text = buffer.add_text(target, texts[target])
                    buffer.add_row("unlearn", where, text, answer)

    recorder._run(prompts, on_call, recorder.seed + BATCH * number, num_inference_steps=steps)


def _add_other(buffer: ReplayBuffer, row: Leaves) -> int:
    """Index of the conditioning of a run's other half: the empty or the negative prompt."""
    digest = ",".join(f"{value.cpu().double().sum().item():.9g}" for value in row.values())
    return buffer.add_text(f"\0{digest}", row)


def _split_inputs(
    inputs: dict[str, Any], names: Sequence[str], rows: int
) -> tuple[Leaves, dict[str, Any]]:
    """What besides the text belongs to a row, batched, and what is the same for all."""
    state: Leaves = {}
    constants: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in names:
            continue
        if name == "timestep":
            state[name] = value.expand(rows).clone() if value.dim() == 0 else value
        elif torch.is_tensor(value) and value.dim() > 0 and len(value) == rows:
            state[name] = value
        else:
            constants[name] = value
    return state, constants


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point():
        return _same(a, b)
    return bool((a - b).float().norm() <= CLOSE * b.float().norm())


def _same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
