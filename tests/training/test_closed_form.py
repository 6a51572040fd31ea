from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from conftest import latents
from peft import LoraConfig, inject_adapter_in_model
from tiny import RUNS, add_other_adapter, state, unlearner

from diffusers_fdu import FDUnlearner
from diffusers_fdu.adapters import lora as adapters
from diffusers_fdu.data.concepts import Concept, NegativeGuidance
from diffusers_fdu.data.plan import retain_prompts
from diffusers_fdu.data.recording import record
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import STYLES
from diffusers_fdu.evaluation.emoji import cells, judge_cells
from diffusers_fdu.pipelines.recorder import Recorder
from diffusers_fdu.pipelines.tokenizers import vocabulary
from diffusers_fdu.training import closed_form
from diffusers_fdu.training.closed_form import (
    KEEP,
    RIDGE,
    Moments,
    align,
    closed_form_start,
    solve,
)

WIDTH = 16  # of the tiny pipe's text


def started(pipe, rank, target_modules=None):
    """A buffer of the tiny pipe, and the closed form on a new adapter."""
    with torch.no_grad():
        words, rng = vocabulary(pipe), random.Random(0)
        pairs = Concept("dog", "cat").prompt_pairs(4, words, rng)
        retain = retain_prompts([Concept("dog", "cat")], None, 12, words, rng)
        buffer = record(Recorder(pipe, RUNS), pairs, retain, progress=False, keep_texts=True)
    config = adapters.lora_config(pipe.unet, rank, 2 * rank, target_modules)
    adapters.attach(pipe.unet, "new", config, 0)
    return buffer, closed_form_start(pipe.unet, "new", buffer, size=3)


def tokens(pipe, buffer):
    """Target's, aligned anchor's and kept tokens, from the text encoder itself."""

    def encoded(prompt):
        if prompt.startswith("\0"):  # the empty prompt of guided runs
            prompt = ""
        return pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach().double()

    names = [prompt for prompt, _ in buffer._text_ids]
    pairs, kept = set(), set()
    own = {entry.prediction: entry.text for entry in buffer.entries("retain")}
    for entry in buffer.entries("unlearn"):
        pairs.add((entry.text, own[entry.prediction]))
    kept = {entry.text for entry in buffer.entries("retain")}
    c = torch.cat([encoded(names[t]) for t, _ in sorted(pairs)])
    a = align(c, torch.cat([encoded(names[a]) for _, a in sorted(pairs)]))
    k = torch.cat([encoded(names[t]) for t in sorted(kept)])
    return tuple(x.reshape(-1, WIDTH).numpy() for x in (c, a, k))


def least_squares(weight, c, a, k):
    """The change of a weight by numpy's solver, and M^(1/2)."""
    scale = (c**2).sum() / len(c) + KEEP * (k**2).sum() / len(k)
    ridge = RIDGE * scale / WIDTH
    system = np.concatenate(
        [c / len(c) ** 0.5, k * (KEEP / len(k)) ** 0.5, np.eye(WIDTH) * ridge**0.5]
    )
    wanted = np.concatenate(
        [(a - c) @ weight.T / len(c) ** 0.5, np.zeros((len(k) + WIDTH, len(weight)))]
    )
    change = np.linalg.lstsq(system, wanted, rcond=None)[0].T
    values, vectors = np.linalg.eigh(system.T @ system)
    return change, vectors * values**0.5 @ vectors.T


def added(layer):
    """What the new adapter adds to a weight."""
    up, down = layer.lora_B["new"].weight, layer.lora_A["new"].weight
    return (layer.scaling["new"] * up @ down).detach().double().numpy()


def text_layers(pipe):
    return {
        n: m
        for n, m in pipe.unet.named_modules()
        if n.endswith(("attn2.to_k", "attn2.to_v")) and hasattr(m, "lora_A")
    }


def test_full_rank_solves_the_least_squares(pipe) -> None:
    buffer, count = started(pipe, WIDTH)
    layers = text_layers(pipe)
    assert count == len(layers) == 8
    for layer in layers.values():
        expected, _ = least_squares(
            layer.base_layer.weight.double().numpy(), *tokens(pipe, buffer)
        )
        found = added(layer)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("rank", [1, 3])
def test_a_smaller_rank_is_the_nearest_in_the_texts_metric(pipe, rank) -> None:
    buffer, _ = started(pipe, rank)
    layer = next(iter(text_layers(pipe).values()))
    whole, root = least_squares(layer.base_layer.weight.double().numpy(), *tokens(pipe, buffer))
    left = np.linalg.svd((added(layer) - whole) @ root, compute_uv=False)
    dropped = np.linalg.svd(whole @ root, compute_uv=False)[rank:]
    assert np.linalg.matrix_rank(added(layer), tol=1e-6) == rank
    assert (left**2).sum() == pytest.approx((dropped**2).sum(), rel=1e-3)


def wide_layers():
    """Layers of two widths, too wide for full decompositions, one of another rank."""
    torch.manual_seed(0)
    outputs = (300, 320, 300, 320)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, out) for out in outputs))
    names = [str(i) for i in range(len(outputs))]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, rank_pattern={"2": 2})
    return list(inject_adapter_in_model(config, model, "new"))


def wide_moments():
    rng = np.random.default_rng(0)
    c = rng.standard_normal((1000, 256)) * np.arange(1, 257) ** -0.7
    a = rng.standard_normal((1000, 256)) * np.arange(1, 257) ** -0.7
    metric = c.T @ c / 1000 + 1e-3 * np.eye(256)
    return Moments(*map(torch.from_numpy, ((a - c).T @ c / 1000, metric)))


@pytest.mark.parametrize("together", [closed_form.TOGETHER, 1])
def test_wide_layers_are_set_alike_one_by_one_or_together(monkeypatch, together) -> None:
    monkeypatch.setattr(closed_form, "TOGETHER", together)
    layers, moments = wide_layers(), wide_moments()
    before = torch.get_rng_state()
    with torch.no_grad():
        solve(layers, "new", moments, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    values, vectors = np.linalg.eigh(moments.metric.numpy())
    root = vectors * values**0.5 @ vectors.T
    for layer, rank in zip(layers, (4, 4, 2, 4), strict=True):
        weight = layer.base_layer.weight.detach().double().numpy()
        whole = weight @ moments.pull.numpy() @ np.linalg.inv(root)
        left, values, right = np.linalg.svd(whole, full_matrices=False)
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert np.linalg.matrix_rank(added(layer), tol=1e-6) == rank
        # In the texts' metric, up to the float32 in which layers answer.
        error = np.linalg.norm(added(layer) @ root - expected)
        assert error < 1e-4 * np.linalg.norm(expected)


def test_no_pull_leaves_layers_without_effect() -> None:
    layers, moments = wide_layers(), wide_moments()
    moments.pull.zero_()
    with torch.no_grad():
        solve(layers, "new", moments, torch.float32)
    assert not any(np.any(added(layer)) for layer in layers)


def test_other_adapters_belong_to_the_teacher(pipe) -> None:
    add_other_adapter(pipe)
    buffer, _ = started(pipe, WIDTH)
    layer = next(m for n, m in text_layers(pipe).items() if n.endswith("attn2.to_v"))
    up, down = layer.lora_B["other"].weight, layer.lora_A["other"].weight
    weight = layer.base_layer.weight + layer.scaling["other"] * up @ down
    expected, _ = least_squares(weight.detach().double().numpy(), *tokens(pipe, buffer))
    np.testing.assert_allclose(added(layer), expected, atol=2e-4 * np.abs(expected).max())


def test_layers_that_read_the_picture_start_without_effect(pipe) -> None:
    _, count = started(pipe, 4, ["attn1.to_k", "attn2.to_k"])
    assert count == 4
    for name, module in pipe.unet.named_modules():
        if name.endswith("to_k"):
            assert bool(module.lora_B["new"].weight.any()) == name.endswith("attn2.to_k")


def test_no_layer_that_reads_the_text_alone(pipe) -> None:
    drawn, before = latents(pipe), state(pipe)
    modules = ["attn1.to_k"]
    with pytest.raises(
        ValueError, match="UNet2DConditionModel has none adapted here: use init='lora'"
    ):
        unlearner(pipe, target_modules=modules, init="closed_form").unlearn("dog", "cat")
    assert state(pipe) == before and torch.equal(latents(pipe), drawn)
    worker = unlearner(pipe, target_modules=modules)
    worker.unlearn("dog", "cat")
    assert worker.recipe["config"]["init"] == "lora"


def test_a_single_step_of_recording_leaves_the_start_to_training(pipe) -> None:
    worker = FDUnlearner(
        pipe, {"num_inference_steps": 1}, progress=False, steps=2, trajectories=1, batch_size=2
    )
    worker.unlearn("dog", "cat")
    assert worker.recipe["config"]["init"] in ("lora", "closed_form")


def test_negative_guidance_has_no_text_to_go_to(pipe) -> None:
    worker = unlearner(pipe)
    worker.unlearn("dog", NegativeGuidance())
    assert worker.recipe["config"]["init"] == "lora"


def test_half_precision_comes_near(pipe) -> None:
    pipe.unet.to(torch.bfloat16)
    pipe.text_encoder.to(torch.bfloat16)
    buffer, _ = started(pipe, WIDTH)
    for layer in text_layers(pipe).values():
        expected, _ = least_squares(
            layer.base_layer.weight.double().numpy(), *tokens(pipe, buffer)
        )
        assert np.linalg.norm(added(layer) - expected) < 0.1 * np.linalg.norm(expected)


def test_it_alone_makes_the_embedded_model_forget() -> None:
    pipe, judge = load_emoji_pipeline(), load_emoji_judge()
    worker = FDUnlearner(
        pipe, {"guidance_scale": 4.0}, progress=False, steps=1, trajectories=24, init="closed_form"
    )
    worker.unlearn("dog", "cat", f="kl")
    dogs = judge_cells(pipe, judge, [("dog", s) for s in STYLES], range(4), num_inference_steps=12)
    assert sum(v.seen[0] == "dog" for v in dogs) <= 2
    others = [cell for cell in cells() if cell[0] not in ("dog", "cat")][::4]
    kept = judge_cells(pipe, judge, others, [0], num_inference_steps=12)
    assert sum(v.seen[0] == v.asked[0] for v in kept) >= 0.9 * len(kept)


def paths(i: int, j: int):
    """All monotone paths from (0, 0) to (i, j)."""
    if i == 0 and j == 0:
        yield [(0, 0)]
    for di, dj in ((1, 1), (1, 0), (0, 1)):
        if i >= di and j >= dj:
            for path in paths(i - di, j - dj):
                yield [*path, (i, j)]


@pytest.mark.parametrize(("length", "width"), [(1, 1), (4, 4), (5, 3), (3, 5), (1, 4), (4, 1)])
def test_agrees_with_the_best_of_all_paths(length, width) -> None:
    torch.manual_seed(length * 10 + width)
    target = torch.randn(6, length, 3, dtype=torch.float64)
    anchor = torch.randn(6, width, 3, dtype=torch.float64)
    aligned = align(target, anchor)
    for n in range(6):
        cost = (target[n, :, None] - anchor[n, None]).square().sum(-1)
        best = min(
            paths(length - 1, width - 1), key=lambda p, cost=cost: sum(cost[i, j] for i, j in p)
        )
        for i, steps in itertools.groupby(best, key=lambda pair: pair[0]):
            nearest = min((j for _, j in steps), key=lambda j, i=i, cost=cost: cost[i, j])
            assert torch.equal(aligned[n, i], anchor[n, nearest])


def test_equal_texts_are_paired_as_they_are() -> None:
    text = torch.randn(2, 7, 4)
    assert torch.equal(align(text, text), text)


def test_a_name_of_two_words_takes_one() -> None:
    words = torch.eye(6) * 10
    a, mickey, mouse, dog, in_, paris = words
    target = torch.stack([a, mickey, mouse, in_, paris])[None]
    anchor = torch.stack([a, dog, in_, paris, paris])[None]
    near = anchor.clone()
    near[0, 1] = 0.5 * (mickey + mouse)  # a dog is nearer to Mickey Mouse than "in" is
    aligned = align(target, near)
    assert torch.equal(aligned[0], near[0][[0, 1, 1, 2, 3]])
