from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_fdu import FDUnlearner
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from examples.benchmarks import all as everything
from examples.benchmarks import closed_form, hardware, step, time_to_erase, train_step, whole
from examples.benchmarks.lines import Results, machine, read
from examples.benchmarks.pipelines import sd1_pipeline, sdxl_pipeline
from examples.benchmarks.time_to_erase import Stopwatch
from examples.benchmarks.usual_loop import UsualConfig, UsualLoop
from examples.on_gpu import steps as on_gpu

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


def test_a_tiny_training_step_is_timed_and_compared(tmp_path) -> None:
    results = Results(tmp_path / "r.jsonl", "cpu")
    names = ("ours", "ours, gradient_checkpointing", "usual", "ours, 4-bit")
    train_step.run_family(results, "tiny", 1, [(name, 1) for name in names])
    *rows, refused = results.rows
    assert [row["variant"] for row in rows] == list(names[:3]) and not results.failed
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in rows)
    assert refused["skipped"] == "4-bit weights are for a GPU"
    shown = train_step.compared(results.rows)
    assert shown[0]["time_ratio"] == rows[0]["seconds"] / rows[2]["seconds"]
    assert 0 < shown[0]["loss_share"] < 1 and "time_ratio" not in shown[2]
    table = train_step.table(results.rows)
    assert table.count("| tiny | 1 |") == 4 and "not run: 4-bit weights" in table
    assert read(tmp_path / "r.jsonl") == json.loads(json.dumps(results.rows))


def test_when_compiling_pays_is_counted_in_steps() -> None:
    row = {"model": "sd1", "batch": 2, "bytes": 1}
    rows = [
        {**row, "variant": "ours", "seconds": 2.0, "first_s": 0.0},
        {**row, "variant": "ours, compile", "seconds": 1.5, "first_s": 10.0},
    ]
    assert train_step.compared(rows)[1]["break_even"] == 20
    rows[0]["batch"] = 16  # other rows say nothing
    assert "break_even" not in train_step.compared(rows)[1]


def test_both_decompositions_of_the_closed_form_agree() -> None:
    row = closed_form.measure("tiny", "decaying", "cpu")
    assert row["full_s"] > 0 and row["new_s"] > 0
    assert row["difference"] < 1e-6 and row["error"] < 1e-6
    assert "| tiny | 3 | decaying |" in closed_form.table([row])


def test_what_does_not_fit_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(step, "free_bytes", lambda device: 2**20)
    results = Results(tmp_path / "r.jsonl", "cpu")
    train_step.run_family(results, "tiny", 1, [("ours", 1), ("usual", 1)])
    assert [row["skipped"] for row in results.rows] == [
        "needs about 0 GiB more, 0 are free",
        "needs about 0 GiB more, 0 are free",
    ]
    assert not results.failed


def test_cards_of_all_sizes_hold_stable_diffusion() -> None:
    """Of published size, traced on fake tensors."""
    (family,) = [one for one in hardware.FAMILIES if one.name == "Stable Diffusion 1"]
    found = hardware.fits(family, streams=False)
    assert all(fit.fits for fit in found)
    assert [fit.performance.micro_batch_size for fit in found] == [2, 4, 8, 16]
    # A row of it takes 0.7 GiB, by another trace (of the meta device).
    fuller, less = (fit.estimate.training / hardware.GIB for fit in found[:1:-1])
    assert (fuller - less) / 16 == pytest.approx(0.7, rel=0.1)


def test_a_tiny_flux_is_trained() -> None:
    results = Results(None, "cpu")
    on_gpu.run_flux(results, tiny=True)
    assert [row["benchmark"] for row in results.rows] == ["train_step", "build", "train_step"]
    assert results.rows[0]["skipped"] and results.rows[2]["seconds"] > 0


def test_a_whole_unlearning_has_a_line_for_each_phase() -> None:
    results = Results(None, "cpu")
    whole.run_sd1(results, tiny=True)
    rows = [row for row in results.rows if row["benchmark"] == "unlearn"]
    names = [row["phase"] for row in rows]
    assert names == ["build", "estimate", *list(whole.PHASES)[1:]]
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in rows) and not results.failed
    (about,) = [row for row in results.rows if row["benchmark"] == "unlearn_about"]
    assert about["steps"] == 3 and about["recorded"]["retain"] > 0
    estimated = {row["phase"] for row in rows if "estimate_bytes" in row}
    assert estimated == {"recording", "closed_form", "training", "drawing"}
    assert whole.memory_table(results.rows).count("sd1, defaults") == 4


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
    watch = Stopwatch(None, 1.0, False)
    for done in (1, 2, 3, 5, 10):
        now[0] += 1.0
        watch.look(done)
    # Looks at 1, 2 and 5; the first two fail by what is kept and by what is left.
    assert watch.reached == {"steps": 5, "seconds": 4.0, "ua": 0.95, "ira": 0.9}
    assert watch.seconds() == 5.0


def results(name="train_step", device="cpu"):
    row = {"model": "tiny", "batch": 1, "variant": "ours", "phase": "training", "method": "ours"}
    row |= {"settings": "defaults", "size": [1], "check": "one", "seconds": 0.5, "bytes": 2**30}
    about = {**machine("cpu"), "device": device, "date": "2026-11-28"}
    return [{**about, "benchmark": name, **row}]


def test_only_what_is_between_the_markers_is_rewritten(tmp_path) -> None:
    marks = "<!-- begin train_step cpu -->\nold\n<!-- end train_step cpu -->"
    page = f"before\n{marks}\nafter <!-- begin train_step cuda --><!-- end train_step cuda -->"
    once = everything.render(results(), page)
    assert once.startswith("before\n<!-- begin train_step cpu -->\n\n") and "old" not in once
    assert once.endswith("\nafter <!-- begin train_step cuda --><!-- end train_step cuda -->")
    assert "| tiny | 1 | ours | 0.500 |" in once
    assert everything.render(results(), once) == once
    file, docs = tmp_path / "results.jsonl", tmp_path / "page.md"
    file.write_text("".join(json.dumps(row) + "\n" for row in results()))
    docs.write_text(page)
    everything.main(docs=docs, from_file=file, device="cpu", only="", tiny=False)
    assert docs.read_text() == once


def test_a_missing_marker_is_named() -> None:
    with pytest.raises(ValueError, match="<!-- begin train_step cpu -->"):
        everything.render(results(), "no markers")


def test_the_page_has_every_marker() -> None:
    page = everything.PAGE.read_text()
    for device, names in (
        ("cpu", everything.TABLES),
        ("cuda", everything.TABLES | everything.GPU_TABLES),
    ):
        for name in names:
            assert everything.render(results(name, device), page) != page
    (row,) = results("unlearn", "cuda")
    once = everything.render([row | {"estimate_bytes": 2**30}], page)
    assert "| tiny, ours, 1 rows of each role, defaults | training | 1.00 | 1.00 | 1.00 |" in once


@pytest.mark.parametrize("make", [sd1_pipeline, sdxl_pipeline])
def test_random_pipelines_are_unlearned_and_draw(make) -> None:
    pipe = make("cpu", torch.float32, tiny=True)
    assert pipe.tokenizer.model_max_length == 77
    options = {"trajectories": 2, "steps": 2, "batch_size": 2, "learning_rate": 1e-6}
    worker = FDUnlearner(pipe, None, False, early_stop=0.0, **options)
    worker.unlearn("dog", "cat")
    assert len(worker.history) == 2 and worker.history[0].distance > 0
    assert pipe("a dog", num_inference_steps=2).images[0].size == (64, 64)
