from __future__ import annotations

import pytest
import torch

from diffusers_fdu import CheckpointConfig, Concept, FDUnlearner, NegativeGuidance, Robust, retrain
from diffusers_fdu.data.teacher import ask
from diffusers_fdu.pipelines.placeholder_tokens import PlaceholderTokens
from diffusers_fdu.pipelines.recorder import Recorder
from diffusers_fdu.pipelines.tokenizers import single_tokens
from diffusers_fdu.training.inversion import Goal, Inversion

RUNS = {"guidance_scale": 3.0, "num_inference_steps": 2}
ROBUST = Robust(every=2, steps=2, batch=4, prompts=2, pictures=2)
SMALL = {
    "trajectories": 4,
    "steps": 4,
    "batch_size": 4,
    "rank": 2,
    "early_stop": 0.0,
    "init": "lora",
    "robust": ROBUST,
}


def worker(pipe, **options) -> FDUnlearner:
    return FDUnlearner(pipe, RUNS, progress=False, **{**SMALL, **options})


@pytest.fixture
def buffer(pipe):
    return worker(pipe).record("dog", "cat")


def test_what_the_adversary_wants_is_the_originals_answer_to_the_target(pipe, buffer) -> None:
    rows = buffer.entries("attacked")
    assert rows and buffer.marker
    texts = Recorder(pipe, RUNS).conditioning(
        [buffer.prompt(row.text).replace(buffer.marker, "dog") for row in rows], buffer.text_names
    )
    asked = [
        row._replace(
            text=buffer.add_text(
                prompt := buffer.prompt(row.text).replace(buffer.marker, "dog"), texts[prompt]
            )
        )
        for row in rows
    ]
    assert torch.allclose(
        ask(pipe.unet, buffer, asked), buffer.predictions(rows).float(), atol=2e-3
    )


def test_what_it_gets_is_the_originals_answer_to_the_anchor(pipe, buffer) -> None:
    hidden, attacked = buffer.entries("hidden"), buffer.entries("attacked")
    assert [(row.state, row.text) for row in hidden] == [(r.state, r.text) for r in attacked]
    prompts = [buffer.prompt(row.text).replace(buffer.marker, "cat") for row in hidden]
    texts = Recorder(pipe, RUNS).conditioning(prompts, buffer.text_names)
    asked = [
        row._replace(text=buffer.add_text(prompt, texts[prompt]))
        for row, prompt in zip(hidden, prompts, strict=True)
    ]
    assert torch.allclose(
        ask(pipe.unet, buffer, asked), buffer.predictions(hidden).float(), atol=2e-3
    )


def test_without_a_prompt_for_the_anchor_it_gets_the_answer_to_nothing(pipe) -> None:
    found = worker(pipe).record("dog")
    hidden = found.entries("hidden")
    text = Recorder(pipe, RUNS).conditioning([""], found.text_names)[""]
    asked = [row._replace(text=found.add_text("", text)) for row in hidden]
    assert torch.allclose(
        ask(pipe.unet, found, asked), found.predictions(hidden).float(), atol=2e-3
    )


def test_with_negative_guidance_it_gets_what_lies_away_from_the_target(pipe) -> None:
    found = worker(pipe).record("dog", NegativeGuidance(2.0))
    hidden, attacked = found.entries("hidden"), found.entries("attacked")
    text = Recorder(pipe, RUNS).conditioning([""], found.text_names)[""]
    empty = ask(pipe.unet, found, [row._replace(text=found.add_text("", text)) for row in hidden])
    own = found.predictions(attacked).float()
    expected = empty - 2.0 * (own - empty)
    assert torch.allclose(found.predictions(hidden).float(), expected, atol=5e-3)


def test_the_retain_rows_do_not_hold_the_target(pipe, buffer) -> None:
    plain = worker(pipe, robust=False).record("dog", "cat")
    assert buffer.count("retain") == plain.count("retain")
    assert buffer.count("unlearn") == plain.count("unlearn")
    assert not plain.count("attacked") and not plain.count("hidden")


def test_half_of_the_rows_are_asked_with_what_was_found(pipe) -> None:
    own = worker(pipe)
    buffer = own.record("dog", "cat")
    seen: list[int] = []
    own.unlearn("dog", "cat", buffer=buffer, callback=lambda r: seen.append(r.step))
    rows = buffer.entries("adversarial")
    # Two searches (steps 0 and 2), each asked at every hidden state.
    assert len(rows) == 2 * buffer.count("hidden")
    assert {buffer.prompt(row.text).split()[1] for row in rows} == {"0", "2"}
    assert own.recipe["config"]["robust"]["pictures"] == 2


def test_the_search_finds_a_known_word(pipe) -> None:
    """A goal that the word "dog" reaches exactly is reached."""
    found = worker(pipe, robust=Robust(every=2, steps=2, prompts=1, pictures=4)).record(
        "dog", "cat"
    )
    rows = found.entries("attacked")
    slots = PlaceholderTokens(pipe, word=found.marker)
    goal = Goal(found, rows, found.text_names, lambda row: 0)
    marked = [found.prompt(rows[0].text)]
    recorder = Recorder(pipe, RUNS)

    def loss(vectors: list[torch.Tensor]) -> float:
        with torch.no_grad():
            texts = slots.conditioning(recorder, marked, goal.names, vectors)
            return goal.loss(pipe.unet, rows, texts).mean().item()

    (_, ids), *_ = single_tokens(pipe, ["dog"])
    assert loss([slots.embeddings(0, ids)]) < 1e-5
    start = loss(slots.vectors)
    vectors = Inversion(steps=60, batch=8, learning_rate=0.3)(
        pipe.unet, slots, recorder, marked, goal, torch.Generator().manual_seed(0)
    )
    assert loss(vectors) < 0.2 * start


def test_training_goes_on_from_a_checkpoint_as_if_uninterrupted(pipe, tmp_path) -> None:
    from conftest import build_tiny_pipe

    def trained(stop: int | None, resume: bool, folder) -> dict:
        fresh = build_tiny_pipe()
        own = worker(fresh)

        def callback(record) -> None:
            if record.step == stop:
                raise KeyboardInterrupt

        try:
            own.unlearn(
                "dog", "cat", callback=callback, checkpoint=CheckpointConfig(folder, 1, resume)
            )
        except KeyboardInterrupt:
            return {}
        return {n: p.clone() for n, p in fresh.unet.named_parameters() if "lora" in n}

    whole = trained(None, False, tmp_path / "a")
    trained(3, False, tmp_path / "b")
    again = trained(None, True, tmp_path / "b")
    assert whole and whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_several_concepts_are_attacked_each(pipe) -> None:
    own = worker(pipe)
    concepts = [Concept("dog", "cat"), Concept("apple", "tree")]
    buffer = own.record(concepts)
    assert {row.concept for row in buffer.entries("hidden")} == {0, 1}
    own.unlearn(concepts, buffer=buffer)
    assert {row.concept for row in buffer.entries("adversarial")} == {0, 1}


@pytest.mark.parametrize("value", ["yes", 3])
def test_bad_values_are_refused(pipe, value) -> None:
    with pytest.raises(ValueError, match="robust must be"):
        worker(pipe, robust=value)


def test_robust_needs_counts() -> None:
    with pytest.raises(ValueError, match="every must be"):
        Robust(every=0)


def test_what_was_recorded_is_not_recorded_again(pipe, tmp_path, monkeypatch) -> None:
    def interrupted(record) -> None:
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(pipe).unlearn(
            "dog", "cat", callback=interrupted, checkpoint=CheckpointConfig(tmp_path, 1)
        )

    def refused(*args, **kwargs):
        raise AssertionError("recorded again")

    monkeypatch.setattr("diffusers_fdu.data.plan.record", refused)
    worker(pipe).unlearn("dog", "cat", checkpoint=CheckpointConfig(tmp_path, 1, True))


def test_a_robust_adapter_is_trained_again_from_its_recipe(pipe) -> None:
    from conftest import build_tiny_pipe

    own = worker(pipe)
    own.unlearn("dog", "cat", callback=lambda record: record.step == 2)
    other = build_tiny_pipe()
    again = retrain(other, own.recipe, progress=False)
    assert len(again.history) == 3 and again.data.defence == ROBUST

    def weights(model) -> list[torch.Tensor]:
        return [p for n, p in model.unet.named_parameters() if "lora" in n]

    assert all(map(torch.equal, weights(pipe), weights(other)))
