from __future__ import annotations

import copy

import pytest
import torch
from conftest import latents
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from diffusers_fdu.data.concepts import Pair
from diffusers_fdu.data.recording import record
from diffusers_fdu.data.rollout import OTHER_EVERY
from diffusers_fdu.pipelines.denoiser import denoiser_name
from diffusers_fdu.pipelines.recorder import Recorder

PAIRS = [Pair("a dog", "a cat"), Pair("red dog", "red cat"), Pair("dog", "cat")]
RETAIN = ["a tree", "house"]


def recorded(pipe, steps=3, dtype=torch.float32, **kwargs):
    recorder = Recorder(pipe, {"num_inference_steps": steps, **kwargs}, seed=5)
    return record(recorder, PAIRS, RETAIN, dtype, progress=False)


def rows(buffer, role):
    return [(role, i) for i in range(buffer.count(role))]


def batch(buffer, rows):
    """Rows whose texts are equally long: one call."""
    (call,), target = buffer.batch(rows, torch.device("cpu"), torch.float32)
    return call.inputs, target


@torch.no_grad()
def replay(pipe, buffer, role):
    kwargs, target = batch(buffer, rows(buffer, role))
    return pipe.unet(**kwargs)[0], target, kwargs


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_retained_rows_replay_the_frozen_model(pipe, guidance_scale) -> None:
    buffer = recorded(pipe, guidance_scale=guidance_scale)
    answer, target, _ = replay(pipe, buffer, "retain")
    torch.testing.assert_close(answer, target, rtol=0, atol=2e-6)


def test_replay_is_exact_in_the_recorded_batch(pipe) -> None:
    buffer = recorded(pipe, guidance_scale=1.0)
    size = len(PAIRS)
    kwargs, target = batch(buffer, [("retain", i) for i in range(size)])
    with torch.no_grad():
        assert torch.equal(pipe.unet(**kwargs)[0], target)


def test_rows_to_unlearn_ask_for_the_target_and_expect_the_anchor(pipe) -> None:
    """Against a call built by hand from the text encoder."""
    buffer = recorded(pipe, guidance_scale=5.0)
    _, target, kwargs = replay(pipe, buffer, "unlearn")

    for i in range(buffer.count("unlearn")):
        asked, expected = PAIRS[i % len(PAIRS)][:2]
        text = kwargs["encoder_hidden_states"][i : i + 1]
        torch.testing.assert_close(text, encode(pipe, asked), rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            answer = pipe.unet(
                kwargs["sample"][i : i + 1], kwargs["timestep"][i], encode(pipe, expected)
            )[0]
        torch.testing.assert_close(answer, target[i : i + 1], rtol=1e-4, atol=1e-5)


def test_states_are_those_of_the_guided_run(pipe) -> None:
    """The first recorded state of a run is the noise of its seed; later ones follow guidance."""
    unguided, guided = recorded(pipe, guidance_scale=1.0), recorded(pipe, guidance_scale=5.0)
    x1 = replay(pipe, unguided, "unlearn")[2]["sample"]
    x5 = replay(pipe, guided, "unlearn")[2]["sample"]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(x1[:1], noise)
    torch.testing.assert_close(x5[:1], noise)
    assert (x1[len(PAIRS)] - x5[len(PAIRS)]).abs().max() > 1e-3


@pytest.mark.parametrize(("steps", "kept"), [(3, 1), (14, 2)])
def test_guidance_adds_the_empty_prompt_now_and_then(pipe, steps, kept) -> None:
    """Every `OTHER_EVERY`-th call of a run, from the first on; the states are shared.

    The first run has half of the steps asked for: 2, and 7.
    """
    assert OTHER_EVERY == 4

    def run(guidance_scale):
        kwargs = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        return record(Recorder(pipe, kwargs), PAIRS, [], progress=False)

    without, with_guidance = run(1.0), run(5.0)
    assert without.count("retain") == without.count("unlearn") == with_guidance.count("unlearn")
    assert with_guidance.count("retain") == without.count("retain") + kept * len(PAIRS)
    assert with_guidance.nbytes < 1.6 * without.nbytes
    kwargs, _ = batch(with_guidance, rows(with_guidance, "retain"))
    texts = kwargs["encoder_hidden_states"]
    ids = pipe.tokenizer("", padding="max_length", max_length=48, return_tensors="pt").input_ids
    with torch.no_grad():
        empty = pipe.text_encoder(ids)[0]
    same = [torch.allclose(text, empty[0], atol=1e-5) for text in texts]
    assert sum(same) == kept * len(PAIRS)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_every_step_of_every_image_gives_a_row(pipe, guidance_scale) -> None:
    """More prompts than a batch, some twice, so that batches of texts and images differ."""
    pairs = [PAIRS[i % 3] for i in range(11)]
    recorder = Recorder(pipe, {"num_inference_steps": 1, "guidance_scale": guidance_scale})
    buffer = record(recorder, pairs, RETAIN, progress=False)
    assert buffer.count("unlearn") == 11
    empty = 8 if guidance_scale > 1 else 0  # of the first batch alone, which has 8 images
    assert buffer.count("retain") == 11 + len(RETAIN) + empty


def test_a_pipeline_that_hides_its_conditioning_is_refused(pipe, monkeypatch) -> None:
    original = pipe.encode_prompt

    def changed(*args, **kwargs):
        texts, others = original(*args, **kwargs)
        return (texts if others is None else texts * 2), others

    monkeypatch.setattr(pipe, "encode_prompt", changed)
    with pytest.raises(ValueError, match="cannot be recorded"):
        recorded(pipe, guidance_scale=5.0)


def test_an_empty_anchor_works_under_guidance(pipe) -> None:
    recorder = Recorder(pipe, {"num_inference_steps": 2, "guidance_scale": 4.0})
    buffer = record(recorder, [Pair("a dog", "")], [], progress=False)
    assert buffer.count("unlearn") > 0


@pytest.mark.parametrize("steps", [None, 24, 30])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_timesteps_cover_the_range(pipe, kind, spacing, steps) -> None:
    """With the default number of anchors; one schedule has 8 timesteps, or `steps`."""
    extra = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing=spacing, **extra)
    recorder = Recorder(pipe, {} if steps is None else {"num_inference_steps": steps})
    buffer = record(recorder, [Pair("a dog", "a cat")] * 96, [], progress=False)
    seen = buffer.timesteps.unique()
    assert len(seen) > 45
    assert seen.diff().max() <= 70 and seen.min() <= 50 and seen.max() >= 940
    assert buffer.timesteps.max() < 1000
    if spacing == "trailing":
        assert seen.max() == 999  # the pipe's own first step is among them


def test_half_precision_is_the_default_and_is_close(pipe) -> None:
    recorder = Recorder(pipe, {"num_inference_steps": 3, "guidance_scale": 5.0}, seed=5)
    half = record(recorder, PAIRS, RETAIN, progress=False)
    full = recorded(pipe, guidance_scale=5.0)
    assert half.nbytes < 0.9 * full.nbytes
    _, a, _ = replay(pipe, half, "unlearn")
    _, b, _ = replay(pipe, full, "unlearn")
    assert 0 < (a - b).abs().max() < 5e-3


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers(pipe, scheduler) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    buffer = recorded(pipe, guidance_scale=5.0)
    answer, target, _ = replay(pipe, buffer, "retain")
    torch.testing.assert_close(answer, target, rtol=0, atol=1e-5)


def snapshot(pipe):
    return (
        pipe.scheduler,
        copy.deepcopy(pipe.scheduler.__dict__),
        dict(pipe._progress_bar_config),
        len(pipe.unet._forward_hooks) + len(pipe.unet._forward_pre_hooks),
        torch.get_rng_state(),
    )


def assert_same(a, b) -> None:
    assert a[0] is b[0] and str(a[1]) == str(b[1]) and a[2:4] == b[2:4]
    assert torch.equal(a[4], b[4])


def test_the_pipe_is_as_before(pipe) -> None:
    latents(pipe)
    before, drawn = snapshot(pipe), latents(pipe, seed=3)
    before = snapshot(pipe)
    recorded(pipe)
    assert_same(snapshot(pipe), before)
    assert torch.equal(latents(pipe, seed=3), drawn)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_pipe_is_as_before_when_interrupted(pipe, monkeypatch, error) -> None:
    before, calls = snapshot(pipe), []

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise error("stop")
        return original(*args, **kwargs)

    original = pipe.unet.conv_in.forward
    monkeypatch.setattr(pipe.unet.conv_in, "forward", forward)
    with pytest.raises(error):
        recorded(pipe)
    assert_same(snapshot(pipe), before)


def test_the_same_seed_records_the_same(pipe) -> None:
    a, b = recorded(pipe), recorded(pipe)
    assert torch.equal(replay(pipe, a, "unlearn")[1], replay(pipe, b, "unlearn")[1])


def test_bad_pipes_and_prompts(pipe) -> None:
    with pytest.raises(ValueError, match="no denoiser"):
        denoiser_name(object())
    recorder = Recorder(pipe, {"num_inference_steps": 2})
    with pytest.raises(ValueError, match="the tokenizer takes 48"):
        record(recorder, [Pair("a " * 60 + "dog", "a cat")], [], progress=False)
    with pytest.raises(ValueError, match="same conditioning"):
        record(recorder, [Pair("a dog", "A  DOG")], [], progress=False)
    with pytest.raises(ValueError, match="no prompts"):
        record(recorder, [], [], progress=False)


def encode(pipe, prompt):
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=48, return_tensors="pt")
    with torch.no_grad():
        return pipe.text_encoder(ids.input_ids)[0]


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_negative_guidance_is_the_equation(pipe, guidance_scale) -> None:
    """eps(empty) - scale (eps(target) - eps(empty)), by hand from the text encoder."""
    kwargs = {"num_inference_steps": 3, "guidance_scale": guidance_scale}
    pairs = [Pair("a dog", "", 0, 2.5), Pair("red dog", "", 0, 2.5), Pair("tree", "a cat", 1)]
    buffer = record(Recorder(pipe, kwargs), pairs, ["a house"], torch.float32, progress=False)
    guided = [r for r in rows(buffer, "unlearn") if buffer.entry(r).concept == 0]
    assert len(guided) > 2
    call, target = batch(buffer, guided)
    dogs = [encode(pipe, prompt)[0] for prompt in ("a dog", "red dog")]
    for i in range(len(guided)):
        text = call["encoder_hidden_states"][i]
        assert any(torch.allclose(text, dog, atol=1e-5) for dog in dogs)
        with torch.no_grad():
            x, t = call["sample"][i : i + 1], call["timestep"][i]
            own, empty = (pipe.unet(x, t, c)[0] for c in (text[None], encode(pipe, "")))
        expected = empty - 2.5 * (own - empty)
        torch.testing.assert_close(target[i : i + 1], expected, rtol=1e-3, atol=1e-4)
    # The target itself is not retained, the other anchor is.
    kept = batch(buffer, rows(buffer, "retain"))[0]
    kept = kept["encoder_hidden_states"]
    assert not any(torch.allclose(k, dog, atol=1e-4) for k in kept for dog in dogs)
    assert any(torch.allclose(k, encode(pipe, "a cat")[0], atol=1e-4) for k in kept)


def test_a_negative_prompt_is_not_the_empty_one(pipe) -> None:
    kwargs = {"num_inference_steps": 2, "guidance_scale": 5.0, "negative_prompt": "red house"}
    pairs = [Pair("a dog", "", 0, 1.0)]
    buffer = record(Recorder(pipe, kwargs), pairs, [], torch.float32, progress=False)
    call, target = batch(buffer, rows(buffer, "unlearn"))
    with torch.no_grad():
        x, t = call["sample"][:1], call["timestep"][0]
        own, empty = (pipe.unet(x, t, encode(pipe, p))[0] for p in ("a dog", ""))
    torch.testing.assert_close(target[:1], 2 * empty - own, rtol=1e-3, atol=1e-4)


def test_a_list_of_negative_prompts_is_refused(pipe) -> None:
    with pytest.raises(ValueError, match="negative_prompt must be one text for all"):
        Recorder(pipe, {"negative_prompt": ["a", "b"]})


def test_an_argument_that_the_pipe_does_not_take_is_refused(pipe) -> None:
    with pytest.raises(ValueError, match="takes no 'hieght': did you mean height"):
        Recorder(pipe, {"hieght": 64})
