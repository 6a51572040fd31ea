from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_fdu.emoji import load_emoji_pipeline
from examples.benchmarks import all as everything
from examples.benchmarks import time_to_erase, train_step
from examples.benchmarks.time_to_erase import Watch
from examples.benchmarks.usual_loop import UsualConfig, UsualLoop

CAPTIONS = [("a dog emoji", "a cat emoji")] * 4


def loop(captions=CAPTIONS, **config) -> UsualLoop:
    made = UsualLoop(load_emoji_pipeline(), UsualConfig(**config))
    torch.manual_seed(0)
    made.start(torch.rand(4, 3, 64, 64) * 2 - 1, captions)
    return made


def test_the_usual_loop_trains_keys_and_values_alone() -> None:
    usual = loop(learning_rate=1e-3)
    before = copy.deepcopy(usual.pipe.unet.state_dict())
    usual.step()
    changed = {n for n, v in usual.pipe.unet.state_dict().items() if not v.equal(before[n])}
    assert changed and all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in changed)
    assert len(changed) == sum(
        n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in before
    )
    for name, value in usual.teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_its_loss_is_zero_where_target_and_anchor_are_one() -> None:
    same = loop([("a cat emoji", "a cat emoji")] * 4, prior_weight=0.0)
    assert same.loss().item() == 0
    assert loop(prior_weight=0.0).loss().item() > 1e-4


def test_its_prior_asks_for_what_the_model_was_trained_on() -> None:
    """The embedded model predicts v: the mean square is far below that of another target."""
    usual = loop(prior_weight=1.0)
    latents, _ = usual._latents(4)
    x, t, wanted = usual._noised(latents)
    noise = DDPMScheduler.from_config(usual.pipe.scheduler.config)
    alpha = noise.alphas_cumprod[t].view(-1, 1, 1, 1)
    epsilon = (x - alpha.sqrt() * latents) / (1 - alpha).sqrt()
    expected = alpha.sqrt() * epsilon - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(wanted, expected, rtol=1e-2, atol=1e-3)


def test_its_gradient_is_the_mean_of_the_micro_batches(monkeypatch) -> None:
    usual = loop(accumulation=2, learning_rate=0.0)
    parts = []
    other = loop(accumulation=1, learning_rate=0.0)
    for _ in range(2):
        other.optimizer.zero_grad()
        other.loss().backward()
        parts.append(other.parameters[0].grad.clone())
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: None)
    usual.step()
    torch.testing.assert_close(usual.parameters[0].grad, (parts[0] + parts[1]) / 2)


def test_a_tiny_training_step_is_timed_and_compared() -> None:
    rows = [
        train_step.measure("tiny", variant, "cpu", 1, 2)
        for variant in ("ours", "ours, gradient_checkpointing", "usual")
    ]
    for row in rows:
        train_step._compare(row, rows)
    assert all(row["step_s"] > 0 and row["memory_gib"] > 0 for row in rows)
    assert rows[0]["time_ratio"] == rows[0]["step_s"] / rows[2]["step_s"]
    assert 0 < rows[0]["loss_share"] < 1
    assert train_step.table(rows).count("| tiny | 1 |") == 3


def test_what_does_not_fit_is_said() -> None:
    assert train_step.needed_gib("sdxl", "usual", "cpu") > train_step.needed_gib(
        "sd1", "ours", "cpu"
    )
    table = train_step.table(
        [{"model": "flux", "batch": 1, "variant": "ours", "skipped": "small"}]
    )
    assert "not run: small" in table


def test_looking_is_off_the_clock(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time_to_erase.time, "monotonic", lambda: now[0])

    def look(found):
        def looking(pipe, tiny):
            now[0] += 100.0
            return found.pop(0)

        return looking

    monkeypatch.setattr(time_to_erase, "erased", look([1.0, 0.9, 0.95]))
    monkeypatch.setattr(time_to_erase, "kept", look([0.5, 0.9]))
    watch = Watch(None, 1.0, False)
    for step in (1, 2, 3, 5, 10):
        now[0] += 1.0
        watch.look(step)
    # Looks at 1, 2 and 5; the first two fail by what is kept and by what is left.
    assert watch.reached == {"steps": 5, "seconds": 4.0, "ua": 0.95, "ira": 0.9}
    assert watch.seconds() == 5.0


def results(name="train_step"):
    rows = [{"model": "tiny", "batch": 1, "variant": "ours", "step_s": 0.5}]
    return {"machine": everything.machine("cpu"), "rows": {name: rows}}


def test_only_what_is_between_the_markers_is_rewritten(tmp_path) -> None:
    marks = "<!-- begin train_step cpu -->\nold\n<!-- end train_step cpu -->"
    page = f"before\n{marks}\nafter <!-- begin train_step cuda --><!-- end train_step cuda -->"
    once = everything.render(results(), page)
    assert once.startswith("before\n<!-- begin train_step cpu -->\n\n") and "old" not in once
    assert once.endswith("\nafter <!-- begin train_step cuda --><!-- end train_step cuda -->")
    assert "| tiny | 1 | ours | 0.500 |" in once
    assert everything.render(results(), once) == once
    file, docs = tmp_path / "results.json", tmp_path / "page.md"
    file.write_text(json.dumps(results()))
    docs.write_text(page)
    everything.main(docs=docs, from_file=file, device="cpu", only="", tiny=False)
    assert docs.read_text() == once


def test_a_missing_marker_is_named() -> None:
    with pytest.raises(ValueError, match="<!-- begin train_step cpu -->"):
        everything.render(results(), "no markers")


def test_the_page_has_every_marker() -> None:
    page = everything.PAGE.read_text()
    for device in ("cpu", "cuda"):
        for name in everything.TABLES:
            found = results(name) | {"rows": {name: []}}
            found["machine"]["device"] = device
            assert everything.render(found, page)
