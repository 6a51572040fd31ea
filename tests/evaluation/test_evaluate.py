from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from conftest import build_tiny_pipe, latents
from launched import command

from diffusers_fdu import Concept, EvaluationCallback, EvaluationConfig, FDUnlearner, evaluate
from diffusers_fdu.emoji.loading import load_emoji_clip, load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import CONCEPTS, STYLES
from diffusers_fdu.evaluation.adapter_under_test import concepts_of
from diffusers_fdu.evaluation.attacks.plain_prompt import NoiseProbing, Removal
from diffusers_fdu.evaluation.callback import check_on_one_device
from diffusers_fdu.evaluation.emoji import draw as draw_emoji
from diffusers_fdu.evaluation.judges import ClipJudge
from diffusers_fdu.evaluation.metrics.clip import ClipScorer
from diffusers_fdu.evaluation.prompt_grid import PromptGrid
from diffusers_fdu.evaluation.protocols import resolve_protocol
from diffusers_fdu.evaluation.result import from_json
from diffusers_fdu.evaluation.setup import evaluation_setup

GRID = PromptGrid(
    {"object": ("dog", "cat", "tree", "apple"), "style": ("blue", "red")},
    "a {object} in {style} style",
    {"object": ("a {}",), "style": ("in {} style",)},
)
RUNS = {"guidance_scale": 2.0, "num_inference_steps": 2}
SMALL = {"trajectories": 2, "steps": 2, "batch_size": 2, "rank": 2, "learning_rate": 0.05}


class Judge:
    """Says "dog" of dark pictures, and remembers how many it saw."""

    name = "dark or light"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images) -> list[dict[str, str]]:
        self.seen.append(len(images))
        dark = [image.convert("L").resize((1, 1)).getpixel((0, 0)) < 128 for image in images]
        return [{"object": "dog" if d else "cat", "style": "blue"} for d in dark]


@pytest.fixture
def trained(pipe) -> FDUnlearner:
    worker = FDUnlearner(pipe, RUNS, progress=False, **SMALL)
    worker.unlearn("dog", "cat")
    return worker


def measure(pipe, source, **options):
    names = {field.name for field in fields(EvaluationConfig)} & set(options)
    own = {name: options.pop(name) for name in names}
    config = EvaluationConfig(
        **{"prompt_grid": GRID, "num_inference_steps": 2, "progress": False, **own}
    )
    return evaluate(pipe, source, **{"judge": Judge(), **options}, config=config)


def test_an_unlearner_and_its_folder_measure_the_same(trained, tmp_path) -> None:
    found = measure(trained.pipe, trained)
    folder = trained.save(tmp_path / "dog")
    fresh = build_tiny_pipe()
    other = measure(fresh, folder)
    assert found.metrics == other.metrics
    assert [i.tobytes() for i in found.after.images] == [i.tobytes() for i in other.after.images]
    assert found.weights_sha256 is None and len(other.weights_sha256) == 64
    assert other.targets == ("dog",) and other.judge == "dark or light"
    assert not hasattr(fresh.unet, "peft_config")  # it was taken off again


def test_before_is_the_pipe_without_the_adapter(trained) -> None:
    found = measure(trained.pipe, trained)
    plain = measure(build_tiny_pipe(), trained_elsewhere(trained))
    assert [i.tobytes() for i in found.before.images] == [i.tobytes() for i in plain.before.images]
    assert [i.tobytes() for i in found.before.images] != [i.tobytes() for i in found.after.images]


def trained_elsewhere(trained):
    import tempfile

    return trained.save(tempfile.mkdtemp())


def test_the_pipe_is_as_it_was(trained) -> None:
    before, state = latents(trained.pipe), torch.get_rng_state()
    measure(trained.pipe, trained, attacks=[Removal()], attack_seeds=(0,))
    assert torch.equal(latents(trained.pipe), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_measured_is_said(trained) -> None:
    found = measure(trained.pipe, trained)
    assert "clip_score" not in found.metrics and "kid" not in found.metrics
    assert [text.split(":")[0] for text in found.left_out] == ["CLIP score and accuracy", "KID"]
    with_features = measure(trained.pipe, trained, extractor=lambda p: p.float().mean((2, 3)))
    assert "kid" in with_features.metrics


def test_attacks_are_part_of_it(trained) -> None:
    found = measure(trained.pipe, trained, attacks=[Removal()], attack_seeds=(0, 1))
    (one,) = found.attacks
    assert one.success.value == one.original and one.floor is None
    floored = measure(
        trained.pipe,
        trained,
        attacks=[Removal(), NoiseProbing((1.2,))],
        attack_seeds=(0,),
        oracle=build_tiny_pipe(),
    )
    taken_off, noise = floored.attacks
    assert taken_off.floor is None  # there is nothing to take off
    assert noise.floor is not None and noise.floor.count == 16


def test_an_interrupted_evaluation_goes_on(trained, tmp_path, monkeypatch) -> None:
    first = measure(trained.pipe, trained, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"before", "after"}

    def refused(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr("diffusers_fdu.pipelines.generate.preserve_pipeline_state", refused)
    monkeypatch.setattr(type(trained.pipe), "encode_prompt", refused)
    with pytest.raises(AssertionError, match="drawn again"):
        measure(trained.pipe, trained)
    monkeypatch.undo()
    assert measure(trained.pipe, trained, folder=tmp_path).metrics == first.metrics


def test_bad_questions_are_refused(trained, pipe) -> None:
    with pytest.raises(ValueError, match="no judge"):
        evaluate(trained.pipe, trained, config=EvaluationConfig(prompt_grid=GRID))
    with pytest.raises(ValueError, match="another pipe"):
        measure(build_tiny_pipe(), trained)
    with pytest.raises(ValueError, match="different domains"):
        measure(pipe, trained, concepts=[Concept("dog"), Concept("blue", kind="style")])
    with pytest.raises(ValueError, match="attacks need one target"):
        measure(pipe, trained, concepts=[Concept("dog"), Concept("tree")], attacks=["removal"])
    with pytest.raises(ValueError, match="takes no 'num_inferance_steps'"):
        measure(pipe, trained, pipeline_kwargs={"num_inferance_steps": 3})
    with pytest.raises(ValueError, match="unknown protocol"):
        measure(pipe, trained, protocol="slow")
    with pytest.raises(ValueError, match="call unlearn first"):
        measure(pipe, FDUnlearner(pipe, progress=False))


def test_a_concept_that_is_not_on_the_canvas_can_be_measured(trained) -> None:
    found = measure(trained.pipe, trained, concepts=[Concept("emoji", "dog")])
    assert found.targets == ("emoji",)
    kept = {r.expected["object"] for r in found.after.requests if r.part == "retain"}
    assert kept == {"dog", "cat", "tree", "apple"}


# Watching a training


def test_a_training_ends_when_the_target_is_gone(pipe) -> None:
    judge = Judge()
    watch = EvaluationCallback(
        pipe,
        "dog",
        every=2,
        until={"ua": 0.0},
        prompt_grid=GRID,
        judge=judge,
        protocol=resolve_protocol("quick", num_inference_steps=2),
    )
    worker = FDUnlearner(pipe, RUNS, progress=False, **{**SMALL, "steps": 6})
    worker.unlearn("dog", "cat", callback=watch)
    assert len(worker.history) == 2
    assert worker.recipe["steps_done"] == 2
    assert [found.step for found in watch.history] == [2]
    assert judge.seen == [len(watch.requests)]


def test_without_a_goal_it_only_watches(pipe) -> None:
    seen: list[int] = []
    watch = EvaluationCallback(
        pipe,
        "dog",
        every=3,
        prompt_grid=GRID,
        judge=Judge(),
        on_result=lambda found: seen.append(found.step),
        protocol=resolve_protocol("quick", num_inference_steps=2),
    )
    worker = FDUnlearner(pipe, RUNS, progress=False, **{**SMALL, "steps": 6, "early_stop": 0.0})
    worker.unlearn("dog", "cat", callback=watch)
    assert len(worker.history) == 6 and seen == [3, 6]


def test_watching_does_not_change_the_training() -> None:
    weights = []
    for watched in (False, True):
        pipe = build_tiny_pipe()
        callback = None
        if watched:
            small = resolve_protocol("quick", num_inference_steps=2)
            callback = EvaluationCallback(
                pipe, "dog", 1, prompt_grid=GRID, judge=Judge(), protocol=small
            )
        worker = FDUnlearner(pipe, RUNS, progress=False, **SMALL)
        worker.unlearn("dog", "cat", callback=callback)
        weights.append([p.clone() for n, p in pipe.unet.named_parameters() if "lora" in n])
    assert all(map(torch.equal, *weights))


def test_bad_watches_are_refused(pipe) -> None:
    with pytest.raises(ValueError, match="every must be"):
        EvaluationCallback(pipe, "dog", 0, prompt_grid=GRID, judge=Judge())
    with pytest.raises(ValueError, match="cannot wait for 'fid'"):
        EvaluationCallback(pipe, "dog", until={"fid": 1}, prompt_grid=GRID, judge=Judge())


# The embedded model


def test_the_embedded_clip_knows_its_pictures() -> None:
    scorer = ClipScorer(*load_emoji_clip())
    judge = ClipJudge(scorer, {"object": CONCEPTS}, {"object": "a {} emoji"})
    images = draw_emoji(load_emoji_pipeline(), [f"a {c} emoji" for c in CONCEPTS], range(32))
    right = [a["object"] == c for a, c in zip(judge(images), CONCEPTS, strict=True)]
    assert sum(right) >= 26
    own = scorer.scores(images, [f"a {c} emoji" for c in CONCEPTS])
    other = scorer.scores(images, [f"a {c} emoji" for c in CONCEPTS[::-1]])
    assert (own > other).float().mean() >= 0.9
    assert len(STYLES) == 4 and load_emoji_judge() is not None


def test_the_command_line_measures_writes_and_feeds_the_card(tmp_path) -> None:
    worker = FDUnlearner(
        load_emoji_pipeline(), {"guidance_scale": 4.0}, progress=False, steps=1, trajectories=4
    )
    worker.unlearn("dog", "cat")
    folder = worker.save(tmp_path / "dog")
    report = tmp_path / "report"
    options = ("--set", "num_inference_steps=5", "--report", str(report), "--device", "cpu")
    done = command("evaluate", str(folder), *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"dog" is gone from' in done.stdout
    found = from_json(report / "evaluation.json")
    assert found.metrics["ua"].value > 0.8 and found.metrics["ua"].before < 0.4
    assert found.metrics["ira"].value > 0.6 and "clip_score" in found.metrics
    assert found.about.startswith("quick: 5 steps, guidance 4")
    assert (report / "report.html").read_text().count("<img") == 2 * (12 + 8 + 12)
    card = json.loads((folder / "evaluation.json").read_text())
    assert card["weights_sha256"] == found.weights_sha256
    from diffusers_fdu import render_card

    text = render_card(folder, "me/no-dog", base_model="")
    assert "UA" in text and "the embedded judge" in text


def test_one_of_several_targets_can_be_chosen() -> None:
    own = [{"target": "dog", "anchor": "cat"}, {"target": "cow", "anchor": None}]
    recipe = {"merged": [{"concepts": own[:1]}, {"concepts": own[1:]}]}
    assert [c.target for c in concepts_of(recipe)] == ["dog", "cow"]
    assert [c.target for c in concepts_of(recipe, ["cow"])] == ["cow"]
    with pytest.raises(ValueError, match="did not unlearn 'owl': choose dog, cow"):
        concepts_of(recipe, ["owl"])
    with pytest.raises(ValueError, match="does not say"):
        concepts_of({})


def test_a_pipe_in_two_places_is_not_watched(pipe) -> None:
    check_on_one_device(pipe)
    pipe.vae.to("meta")
    with pytest.raises(ValueError, match="offload=False"):
        check_on_one_device(pipe)


def test_a_target_that_occurs_twice_has_one_anchor() -> None:
    """As in a merged adapter two of whose parts unlearned the dog."""
    concepts = [Concept("dog", "cat"), Concept("dog", "fox"), Concept("cow", "pig")]
    setup = evaluation_setup(load_emoji_pipeline(), concepts, resolve_protocol("quick"))
    task = setup.task
    assert dict(zip(task.targets, task.anchors, strict=True)) == {"dog": "fox", "cow": "pig"}
