"""Record what a frozen pipeline does: its own denoiser calls, by hook, while it draws.

The pipeline is the source of truth for how its denoiser is called. Its calls on the anchor's
prompts are recorded as keyword arguments; those that depend on the text are found by comparing
two prompts, and swapped for the target's. So nothing about prompt embeddings, added conditions
or guidance is rebuilt here, and the teacher costs nothing once training starts.

In a guided run the rows that carry the prompt's own conditioning answer for the anchor; the
others answer for the empty (or negative) prompt and are kept as something to retain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .recorder import BATCH, Call, Recorder, same, untouched
from .replay import Leaves, ReplayBuffer

OTHER_EVERY = 4  # one call in so many keeps the rows of the empty prompt, which is one prompt
GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread evenly over [0, 1) however many there are
SQUARE = 2**0.5 - 1  # likewise, and independent of the multiples of the other
CLOSE = 0.01  # one text encoded twice differs by rounding, relative; two texts by far more


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
        texts = recorder.conditioning([target for target, _ in pairs], names)
        scheduler = getattr(recorder.pipe, "scheduler", None)
        low, high = (recorder.steps + 1) // 2, recorder.steps
        with tqdm(total=len(runs), desc="record", disable=not progress, unit="image") as bar:
            for i, part in enumerate(batches):
                steps = low + int(i * GOLDEN % 1 * (high - low + 1))
                # Half the runs visit the timesteps that the pipe itself would.
                if scheduler is not None and i % 2:
                    recorder.pipe.scheduler = _shifted(scheduler, steps, i * SQUARE % 1)
                elif scheduler is not None:
                    recorder.pipe.scheduler = scheduler
                _record_batch(recorder, buffer, part, names, texts, steps, i)
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


def _shifted(scheduler: Any, steps: int, share: float) -> Any:
    """The scheduler, its timesteps moved by a share of their distance where it can do that."""
    config: Any = getattr(scheduler, "config", {})
    if "steps_offset" not in config or "timestep_spacing" not in config:
        return scheduler
    # With one more step, so that every kind of scheduler stays inside the training range.
    offset = int(share * (config.num_train_timesteps // (steps + 1)))
    return type(scheduler).from_config(config, timestep_spacing="leading", steps_offset=offset)


def _record_batch(
    recorder: Recorder,
    buffer: ReplayBuffer,
    runs: list[tuple[str, str | None]],
    names: Sequence[str],
    texts: dict[str, Leaves],
    steps: int,
    number: int,
) -> None:
    prompts = [prompt for prompt, _ in runs]
    size = len(prompts)
    own = recorder.first_call(prompts).inputs
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
            if not latest or not all(same(latest["key"][n], v) for n, v in key.items()):
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

    recorder.run(prompts, on_call, recorder.seed + BATCH * number, num_inference_steps=steps)


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
        elif _holds_tensors(value):
            raise ValueError(
                f"cannot record this pipeline: its denoiser takes a list of tensors as {name!r}"
            )
        else:
            constants[name] = value
    return state, constants


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(
        torch.is_tensor(item) or _holds_tensors(item) for item in value
    )


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point():
        return same(a, b)
    return bool((a - b).float().norm() <= CLOSE * b.float().norm())
