"""Run a pipeline under hooks: every call of its denoiser as keyword arguments and a prediction.

`output_type="latent"` skips the decoder, and leaving a run at its first call makes any pipeline
a text encoder.
"""

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
from .denoiser import denoiser_name, denoiser_names, extract_prediction, sample_name

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
WITHOUT = (1.0, 0.0)  # scales without guidance: of nearly all pipelines, and of the others
SHORTEST = ""  # a prompt that is shorter than all others, so that masks differ


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
    model: nn.Module, on_call: Callable[[Call], None], stop: bool, grad: bool
) -> Iterator[None]:
    signature, name = inspect.signature(model.forward), sample_name(model)
    pending: list[Call] = []

    def before_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = signature.bind(*args, **kwargs).arguments
        bound.update(bound.pop("kwargs", {}))
        inputs = flatten(bound)
        if not grad:
            inputs = {name: clone_tensors(value) for name, value in inputs.items()}
        if stop:
            on_call(Call(inputs))
            raise _Stop
        pending[:] = [Call(inputs)]

    def after_call(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        call = pending.pop()
        call.prediction = extract_prediction(output, call.inputs[name]).detach()
        on_call(call)

    with (
        model.register_forward_pre_hook(before_call, with_kwargs=True),
        model.register_forward_hook(after_call, with_kwargs=True),
    ):
        yield


class Recorder:
    """Runs a pipeline under hooks, with the arguments of its recorded runs.

    `batch` pictures are drawn at once, fewer if they do not fit the memory; more than `BATCH` make
    larger groups. `component` is the denoiser to record, by default the pipe's first.
    """

    def __init__(
        self,
        pipe: Any,
        pipeline_kwargs: Mapping[str, Any] | None = None,
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
        negative = [v for name, v in self.kwargs.items() if name.startswith("negative_prompt")]
        self.has_negative = any(isinstance(text, str) and bool(text) for text in negative)
        self._parameters = inspect.signature(pipe.__call__).parameters
        self._guidance_off = WITHOUT[0]
        default = getattr(self._parameters.get("num_inference_steps"), "default", STEPS)
        self.steps = self.kwargs.pop("num_inference_steps", None) or min(default, STEPS)

    def run(
        self,
        prompts: Sequence[str],
        on_call: Callable[[Call], None],
        seed: int,
        stop: bool = False,
        grad: bool = False,
        **extra: Any,
    ) -> None:
        """Draw prompts, as one batch, and hand every denoiser call to `on_call`.

        The pictures' noise comes from `seed` and the numbers after it. With `stop` the run is left
        at the first call; with `grad` the inputs stay part of the autograd graph.
        """
        # The first call is the same, whichever of several denoisers gets it.
        names = denoiser_names(self.pipe) if stop else []
        models = [getattr(self.pipe, name) for name in names] or [self.model]
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        arguments = {**self.kwargs, "output_type": "latent", "generator": generators, **extra}
        arguments = repeat_negative_prompts(arguments, len(prompts))
        call = type(self.pipe).__call__
        draw = inspect.unwrap(call) if grad else call  # beneath diffusers' own torch.no_grad()
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            for model in models:
                stack.enter_context(_hooked(model, on_call, stop, grad))
            with suppress(_Stop):
                draw(self.pipe, prompt=list(prompts), **arguments)

    def first_call(self, prompts: Sequence[str], grad: bool = False) -> Call:
        """The first denoiser call without guidance, one row for each prompt; see `run`."""
        calls: list[Call] = []
        extra: dict[str, Any] = {"num_inference_steps": 2}
        extra |= {name: self._guidance_off for name in GUIDANCE if name in self._parameters}
        self.run(prompts, calls.append, self.seed, stop=True, grad=grad, **extra)
        return calls[0]

    def check_lengths(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the pipe would cut."""
        for name in TOKENIZERS:
            tokenizer = getattr(self.pipe, name, None)
            limit, source = self._limit(name, tokenizer)
            if tokenizer is None or limit is None or limit > 100_000:  # which means no limit
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
        default = getattr(self._parameters.get("max_sequence_length"), "default", None)
        longest = self.kwargs.get("max_sequence_length", default)
        # That argument is of the long text encoders; CLIP has its own length always.
        is_clip = type(tokenizer).__name__.startswith("CLIP")
        if isinstance(longest, int) and not is_clip and (limit is None or longest < limit):
            return longest, "max_sequence_length"
        return limit, name

    def find_signature(self, prompt: str, other: str) -> CallSignature:
        """How the pipeline calls its denoiser, by two prompts that should be told apart."""
        prompts = (prompt, other, SHORTEST)
        name = sample_name(self.model)
        for scale in WITHOUT:
            self._guidance_off = scale
            alone = [self.first_call([p]).inputs for p in prompts]
            if len(alone[0][name]) == 1:
                break
        else:
            raise ValueError(
                f"{type(self.pipe).__name__} asks its denoiser {len(alone[0][name])} questions "
                "for one prompt, guidance or not: this pipeline cannot be recorded"
            )
        signature = find_call_signature(alone, self.first_call(prompts).inputs)
        if all(same(alone[0].get(text), alone[1].get(text)) for text in signature.texts):
            raise ValueError(
                f"the pipeline gives {prompt!r} and {other!r} the same conditioning: "
                "the tokenizer does not tell them apart"
            )
        return signature

    def conditioning(self, prompts: Sequence[str], names: Sequence[str]) -> dict[str, RowInputs]:
        """Text-dependent arguments of each prompt, without batch dimension."""
        texts: dict[str, RowInputs] = {}

        def encode(part: Sequence[str]) -> None:
            inputs = self.first_call(part).inputs
            texts.update({prompt: select_row(inputs, names, i) for i, prompt in enumerate(part)})

        self.micro.map(encode, list(dict.fromkeys(prompts)))
        return texts


def repeat_negative_prompts(arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments with one negative prompt for each picture, as pipelines want them."""
    repeated = dict(arguments)
    for name, value in arguments.items():
        if name.startswith("negative_prompt") and isinstance(value, str):
            repeated[name] = [value] * count
    return repeated


def select_row(inputs: Mapping[str, Any], names: Sequence[str], i: int) -> RowInputs:
    """One prompt's part of these arguments, without batch dimension."""
    return {name: None if inputs.get(name) is None else inputs[name][i] for name in names}
