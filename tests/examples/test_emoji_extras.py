"""What lies beside the embedded model: an oracle that never saw a dog."""

from __future__ import annotations

import torch

from diffusers_fdu.emoji.loading import (
    CLIP_WEIGHTS,
    ORACLE,
    ORACLE_WEIGHTS,
    from_8_bits,
    load_emoji_judge,
    load_emoji_oracle,
    load_emoji_pipeline,
)
from diffusers_fdu.emoji.vocabulary import CONCEPTS, STYLES
from diffusers_fdu.evaluation.emoji import accuracy, cells, judge_cells
from examples.emoji_training.eight_bits import to_8_bits


def test_eight_bits_keep_a_weight_to_half_a_step() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] *= 100
    kept = to_8_bits("w", weight)
    assert kept["w"].dtype == torch.int8
    found = from_8_bits(kept, "w")
    step = weight.flatten(1).abs().amax(1) / 127
    assert ((found - weight).flatten(1).abs() <= 0.501 * step[:, None]).all()


def test_what_is_no_matrix_keeps_half_precision() -> None:
    bias = torch.randn(7)
    kept = to_8_bits("b", bias)
    assert list(kept) == ["b"] and torch.equal(from_8_bits(kept, "b"), bias.half().float())
    places = torch.arange(4)
    assert torch.equal(to_8_bits("p", places)["p"], places)


def test_files_are_small() -> None:
    assert ORACLE_WEIGHTS.stat().st_size <= 10_000_000
    assert sum(path.stat().st_size for path in CLIP_WEIGHTS.iterdir()) <= 6_000_000


def test_the_oracle_draws_everything_but_a_dog() -> None:
    pipe, judge = load_emoji_oracle(), load_emoji_judge()
    kept = [cell for cell in cells() if ORACLE not in cell][::5]
    concept, _ = accuracy(judge_cells(pipe, judge, kept, [3], num_inference_steps=15))
    assert concept >= 0.8
    asked = [(ORACLE, style) for style in STYLES]
    seen = judge_cells(pipe, judge, asked, range(4), num_inference_steps=15)
    assert sum(verdict.seen[0] == ORACLE for verdict in seen) <= 2
    assert ORACLE in CONCEPTS


def test_the_oracle_shares_all_but_denoiser_and_text_encoder() -> None:
    oracle, own = load_emoji_oracle(), load_emoji_pipeline()
    for part, is_same in (("vae", True), ("unet", False), ("text_encoder", False)):
        a, b = (getattr(pipe, part).state_dict() for pipe in (oracle, own))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a) == is_same
