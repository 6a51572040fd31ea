"""Run a pipeline under hooks: every call of its denoiser as keyword arguments and a prediction.

`output_type="latent"` skips the decoder, and leaving a run at its first call makes any pipeline
a text encoder.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.micro_batches import MicroBatches
from ..utils.nested import RowInputs, clone_tensors, flatten, same
from .call_signature import CallSignature, check_arguments, find_call_signature
from .denoiser import denoiser_name, denoiser_names, predicted, sample_name

BATCH = 8
"""Pictures of a group, which share the steps of their run; drawn at once where the memory allows.

What is recorded depends on the groups, and not on how many of a group are drawn at once.
"""
STEPS = 8
"""Most steps of a recorded run; runs have between half of them and all.

At the same cost, many prompts of few steps show the denoiser more of the concept than few prompts
of many steps.
"""
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
GUIDANCE = ("guidance_scale", "true_cfg_scale")
WITHOUT = (1.0, 0.0)
"""Guidance scales without guidance: that of nearly all pipelines, and that of the others."""
SHORTEST = ""
"""A prompt that is shorter than all others, so that masks differ."""


class _Stop(BaseException):
    """Leaves a pipeline after its first denoiser call; no `except Exception` catches it."""


@dataclass
class Call:
    """One denoiser call: keyword arguments with dotted names, and the prediction."""

    inputs: dict[str, Any]
    prediction: Tensor | None = None


@contextmanager
def preserve_pipeline_state(pipe: Any) -> Iterator[None]:
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
def _hooked(
    model: nn.Module, on_call: Callable[[Call], None], stop: bool, grad: bool = False
) -> Iterator[None]:
    signature, name = inspect.signature(model.forward), sample_name(model)
    pending: list[Call] = []

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = signature.bind(*args, **kwargs).arguments
        bound.update(bound.pop("kwargs", {}))
        inputs = flatten(bound)
        if not grad:
            inputs = {name: clone_tensors(value) for name, value in inputs.items()}
        pending[:] = [Call(inputs)]
        if stop:
            on_call(pending.pop())
            raise _Stop

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        call = pending.pop()
        call.prediction = predicted(output, call.inputs[name]).detach()
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
        batch: pictures drawn at once, fewer if they do not fit the memory; more than `BATCH` make
            larger groups.
        component: the denoiser to record; None: the pipe's first.

    Raises:
        ValueError: if the pipe has no denoiser, or for an argument that recording sets or that
            the pipe does not take.
    """

    def __init__(
        self,
        pipe: Any,
        pipeline_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        batch: int = BATCH,
        component: str | None = None,
    ) -> None:
        self.pipe = pipe
        self.model: nn.Module = getattr(pipe, denoiser_name(pipe, component))
        self.kwargs = dict(pipeline_kwargs or {})
        self.seed, self.group = seed, max(BATCH, batch)
        self.micro = MicroBatches(batch, "pictures")
        check_arguments(pipe, self.kwargs)
        self.has_negative = any(
            name.startswith("negative_prompt") and bool(value)
            for name, value in self.kwargs.items()
            if isinstance(value, str)
        )
        parameters = inspect.signature(pipe.__call__).parameters
        self._guidance = [name for name in GUIDANCE if name in parameters]
        self._off = WITHOUT[0]
        default = getattr(parameters.get("num_inference_steps"), "default", STEPS)
        self.steps = self.kwargs.pop("num_inference_steps", None) or min(default, STEPS)

    def run(
        self,
        prompts: Sequence[str],
        on_call: Callable,
        seed: int,
        stop: bool = False,
        grad: bool = False,
        **extra: Any,
    ) -> None:
        """Draw prompts, as one batch, and hand every denoiser call to `on_call`.

        Args:
            prompts: what to draw.
            on_call: gets every `Call`.
            seed: of the first picture's noise; the others follow.
            stop: leave the run at the first call.
            grad: what the call is given stays part of the autograd graph.
            **extra: further arguments of the pipeline.
        """
        # The first call is the same, whichever of several denoisers gets it.
        names = denoiser_names(self.pipe) if stop else []
        models = [getattr(self.pipe, name) for name in names] or [self.model]
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        arguments = {**self.kwargs, "output_type": "latent", "generator": generators, **extra}
        arguments = for_each(arguments, len(prompts))
        draw = type(self.pipe).__call__
        if grad:  # beneath diffusers' own torch.no_grad()
            draw = inspect.unwrap(draw)
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            for model in models:
                stack.enter_context(_hooked(model, on_call, stop, grad))
            with suppress(_Stop):
                draw(self.pipe, prompt=list(prompts), **arguments)

    def first_call(self, prompts: Sequence[str], grad: bool = False) -> Call:
        """The first denoiser call without guidance: one row a prompt.

        Args:
            prompts: what is asked.
            grad: see `run`.
        """
        off: dict[str, Any] = dict.fromkeys(self._guidance, self._off)
        calls: list[Call] = []
        off["num_inference_steps"] = 2
        self.run(prompts, calls.append, self.seed, stop=True, grad=grad, **off)
        return calls[0]

    def check_lengths(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the pipe would cut.

        Raises:
            ValueError: with the prompt and the limit.
        """
        for name in TOKENIZERS:
            tokenizer = getattr(self.pipe, name, None)
            limit, source = self._limit(name, tokenizer)
            if tokenizer is None or limit is None or limit > 100_000:
                continue
            for prompt in dict.fromkeys(prompts):
                length = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
                if length > limit:
                    raise ValueError(
                        f"prompt {prompt!r} has {length} tokens, the {source} takes {limit}: "
                        "shorten it, or the concept it is about"
                    )

    def _limit(self, name: str, tokenizer: Any) -> tuple[int | None, str]:
        """Most tokens that a tokenizer's prompts may have, and what says so."""
        limit = getattr(tokenizer, "model_max_length", None)
        parameters = inspect.signature(self.pipe.__call__).parameters
        default = getattr(parameters.get("max_sequence_length"), "default", None)
        given = self.kwargs.get("max_sequence_length", default)
        # That argument is of the long text encoders; CLIP has its own length always.
        if not isinstance(given, int) or type(tokenizer).__name__.startswith("CLIP"):
            return limit, name
        return (given, "max_sequence_length") if limit is None or given < limit else (limit, name)

    def layout(self, prompt: str, other: str) -> CallSignature:
        """How the pipeline calls its denoiser, see `find_call_signature`.

        Args:
            prompt: any.
            other: one that should be told apart from it.

        Raises:
            ValueError: if nothing differs, or the pipeline cannot be recorded.
        """
        prompts = (prompt, other, SHORTEST)
        name = sample_name(self.model)
        for off in WITHOUT:
            self._off = off
            alone = [self.first_call([one]).inputs for one in prompts]
            if len(alone[0][name]) == 1:
                break
        else:
            raise ValueError(
                f"{type(self.pipe).__name__} asks its denoiser {len(alone[0][name])} questions "
                "for one prompt, guidance or not: this pipeline cannot be recorded"
            )
        found = find_call_signature(alone, self.first_call(prompts).inputs)
        if all(same(alone[0].get(text), alone[1].get(text)) for text in found.texts):
            raise ValueError(
                f"the pipeline gives {prompt!r} and {other!r} the same conditioning: "
                "the tokenizer does not tell them apart"
            )
        return found

    def conditioning(self, prompts: Sequence[str], names: Sequence[str]) -> dict[str, RowInputs]:
        """Text-dependent arguments of each prompt, without batch dimension; None: left out."""
        texts: dict[str, RowInputs] = {}
        unique = list(dict.fromkeys(prompts))

        def encode(part: Sequence[str]) -> None:
            inputs = self.first_call(part).inputs
            texts.update({prompt: entry(inputs, names, i) for i, prompt in enumerate(part)})

        self.micro.map(encode, unique)
        return texts


def for_each(arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments with one negative prompt for each picture, as pipelines want them."""
    return {
        name: [value] * count
        if name.startswith("negative_prompt") and isinstance(value, str)
        else value
        for name, value in arguments.items()
    }


def entry(inputs: dict[str, Any], names: Sequence[str], i: int) -> RowInputs:
    """One prompt's part of these arguments, without batch dimension."""
    return {name: None if inputs.get(name) is None else inputs[name][i] for name in names}
