from __future__ import annotations

import pytest
import torch
from conftest import build_tiny_pipe, latents

from diffusers_fdu.adapters import lora as adapters
from diffusers_fdu.data.teacher import ask
from diffusers_fdu.evaluation.attacks.attack import AttackOutcome, AttackTarget
from diffusers_fdu.evaluation.attacks.plain_prompt import (
    Completion,
    NoiseProbing,
    Relearning,
    Removal,
    scaled_noise,
)
from diffusers_fdu.evaluation.attacks.run import ATTACKS, attack, check_names
from diffusers_fdu.evaluation.attacks.search import (
    ConceptInversion,
    GreedySearch,
    Prefix,
    PromptSearch,
    simplex,
)
from diffusers_fdu.training.inversion import Inversion

SETTINGS = {"num_inference_steps": 3, "guidance_scale": 2.0}


def with_adapter(pipe, size: float = 0.5) -> str:
    """An adapter that changes the model a lot."""
    before = adapters.snapshot(pipe.unet)
    parameters = adapters.attach(
        pipe.unet, "forget", adapters.lora_config(pipe.unet, 4, None, None), 0
    )
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(i)
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    adapters.finish(pipe.unet, "forget", before)
    return "forget"


def scene(pipe, **options) -> AttackTarget:
    name = with_adapter(pipe)
    options = {"settings": SETTINGS, "pictures": 2, "batch": 2, **options}
    return AttackTarget(
        pipe,
        "dog",
        lambda i: [True] * len(i),
        ["a {}", "a {} emoji"],
        adapter_name=name,
        **options,
    )


SMALL = [
    ConceptInversion(Inversion(steps=2, batch=2), pictures=2),
    PromptSearch(words=2, steps=2, batch=2, pictures=2),
    GreedySearch(words=2, steps=2, batch=2, candidates=2, top=3, pictures=2),
    NoiseProbing(scales=(1.1, 1.5)),
    Completion(steps=2, every=1),
    Relearning(steps=(1, 2), batch=2, pictures=2),
    Removal(),
]


@pytest.mark.parametrize("one", SMALL, ids=lambda one: one.name)
def test_attacks_leave_the_pipe_as_it_was(one, pipe) -> None:
    where = scene(pipe)
    before, state = latents(pipe), torch.get_rng_state()
    scheduler = str(vars(pipe.scheduler))
    names = {name for name, _ in pipe.unet.named_modules()}
    outcome = one(where, 0)
    assert len(outcome.hits) == 2
    assert str(vars(pipe.scheduler)) == scheduler
    assert torch.equal(latents(pipe), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name for name, _ in pipe.unet.named_modules()} == names
    assert list(pipe.unet.peft_config) == ["forget"]
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks
    assert "prepare_latents" not in vars(pipe)


@pytest.mark.parametrize("one", SMALL[:3], ids=lambda one: one.name)
def test_the_same_seed_finds_the_same(one, pipe) -> None:
    found = []
    for _ in range(2):
        seen: list[bytes] = []
        where = scene(build_tiny_pipe())
        object.__setattr__(
            where, "is_target", lambda images, s=seen: s.extend(map(_bytes, images)) or [True] * 2
        )
        found.append((one(where, 1).found, seen))
    assert found[0] == found[1]


def _bytes(image) -> bytes:
    return image.tobytes()


def test_the_goal_is_the_originals_answer_to_the_target(pipe) -> None:
    where = scene(pipe)
    goal = where.goal(["a cat", "a cat emoji"], 0, 4)
    recorder = where.recorder()
    texts = recorder.conditioning(["a dog", "a dog emoji"], goal.names)
    asked = [
        row._replace(
            text=goal.buffer.add_text(p := ["a dog", "a dog emoji"][row.concept], texts[p])
        )
        for row in goal.entries
    ]
    with where.original():
        own = ask(pipe.unet, goal.buffer, asked)
    assert torch.allclose(own, goal.buffer.predictions(goal.entries), atol=1e-5)
    other = ask(pipe.unet, goal.buffer, asked)
    assert (other - own).abs().max() > 1e-3  # the adapter changes it


def test_the_loss_is_the_mean_squared_error_under_other_words(pipe) -> None:
    where = scene(pipe)
    goal = where.goal(["a cat", "a cat emoji"], 0, 4)
    inputs = where.recorder().first_call(["a tree", "an apple"]).inputs
    texts = {name: inputs[name] for name in goal.names}
    rows = list(goal.entries)[:3]
    with torch.no_grad():
        found = goal.loss(pipe.unet, rows, texts)
    kept = where.recorder().conditioning(["a tree", "an apple"], goal.names)
    asked = [
        row._replace(text=goal.buffer.add_text(p := ["a tree", "an apple"][row.concept], kept[p]))
        for row in rows
    ]
    answer = ask(pipe.unet, goal.buffer, asked)
    expected = (answer - goal.buffer.predictions(rows)).flatten(1).square().mean(1)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_greedy_search_never_gets_worse(pipe) -> None:
    where = scene(pipe)
    prefix = Prefix(where, 2, 0, 2)
    generator = torch.Generator().manual_seed(0)
    start = prefix.random(generator)
    held = prefix.goal.drawn(4, generator)
    found = GreedySearch(words=2, steps=4, batch=4, candidates=4, pictures=2).search(prefix, 0)
    assert prefix.loss_of(found, held) <= prefix.loss_of(start, held)
    assert prefix.prompts(found)[0] == f"a {prefix.in_words(found)} a dog"


def test_words_in_the_slots_are_words_in_the_prompt(pipe) -> None:
    where = scene(pipe)
    prefix = Prefix(where, 2, 0, 2)
    words = (prefix.words.index("apple"), prefix.words.index("tree"))
    with torch.no_grad():
        vectors = [table[list(words)] for table in prefix.tables]
        names = prefix.goal.names
        own = prefix.slots.conditioning(prefix.recorder, prefix.marked, names, vectors)
    plain = prefix.recorder.first_call(prefix.prompts(words)).inputs
    for name in prefix.goal.names:
        assert torch.allclose(own[name], plain[name], atol=1e-6)


def test_projection_is_the_nearest_point_of_the_simplex() -> None:
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = simplex(rows)
    assert torch.allclose(found.sum(1), torch.ones(6, dtype=torch.float64))
    assert (found >= 0).all()
    # The distance to any other point of the simplex is larger.
    others = torch.rand(500, 1, 5, dtype=torch.float64)
    others = others / others.sum(-1, keepdim=True)
    assert ((rows - others).norm(dim=-1) >= (rows - found).norm(dim=-1) - 1e-9).all()
    inside = torch.tensor([[0.2, 0.3, 0.5]])
    assert torch.allclose(simplex(inside), inside)


def test_larger_noise_is_larger_from_the_start(pipe) -> None:
    seen: list[torch.Tensor] = []

    def keep(module, args, kwargs) -> None:
        seen.append((args[0] if args else kwargs["sample"]).clone())

    handle = pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    for scale in (1.0, 2.0):
        with scaled_noise(pipe, scale):
            latents(pipe)
    handle.remove()
    assert torch.allclose(seen[3], 2.0 * seen[0])


def test_a_completed_picture_begins_as_the_originals(pipe) -> None:
    """Handed over before the last step, only that step differs; after the last, none does."""
    where = scene(pipe)
    images: list = []
    object.__setattr__(where, "is_target", lambda i: images.append(i) or [True] * len(i))
    Completion(steps=3, every=1)(where, 0)
    with where.original() as original:
        prompts, seeds = where.judged_rows(where.prompts, 0)
        expected = where.draw(prompts, seeds, original)
    assert [_bytes(i) for i in images[-1]] == [_bytes(i) for i in expected]
    assert [_bytes(i) for i in images[0]] != [_bytes(i) for i in expected]


def test_relearning_comes_nearer_to_the_original(pipe) -> None:
    where = scene(pipe)
    goal = where.goal([""] * 2, 0, 4)
    inputs = where.recorder().first_call(where.prompts).inputs
    texts = {name: inputs[name] for name in goal.names}
    losses: list[float] = []

    def is_target(images) -> list[bool]:
        with torch.no_grad():
            losses.append(goal.loss(pipe.unet, list(goal.entries), texts).mean().item())
        return [True] * len(images)

    object.__setattr__(where, "is_target", is_target)
    found = Relearning(steps=(1, 40), batch=8, learning_rate=1e-2, pictures=4)(where, 0)
    assert losses[1] < 0.7 * losses[0]
    assert [spent for spent, _ in found.curve] == [1.0, 40.0]


def test_removal_is_the_original(pipe) -> None:
    where = scene(pipe)
    images: list = []
    object.__setattr__(where, "is_target", lambda i: images.extend(i) or [True] * len(i))
    Removal()(where, 0)
    plain = build_tiny_pipe()
    expected = where.draw(*where.judged_rows(where.prompts, 0), plain)
    assert [_bytes(i) for i in images] == [_bytes(i) for i in expected]


def test_models_without_an_adapter_are_attacked_beside_their_original(pipe) -> None:
    changed = build_tiny_pipe()
    with torch.no_grad():
        for parameter in changed.unet.parameters():
            parameter.mul_(1.1)
    where = AttackTarget(
        changed,
        "dog",
        lambda images: [False] * len(images),
        reference=pipe,
        settings=SETTINGS,
        pictures=2,
    )
    for one in SMALL:
        assert one(where, 0).hits == [False, False]


class Scripted:
    """Hits as given, by seed."""

    name = "scripted"

    def __call__(self, scene: AttackTarget, seed: int) -> AttackOutcome:
        hits = [[True, True], [True, False]][seed]
        curve = ((1.0, 0.0), (2.0, sum(hits) / 2))
        return AttackOutcome(hits, curve, f"word {seed}", {"steps": 3})


def test_results_are_means_over_the_seeds(pipe) -> None:
    where = scene(pipe)
    calls = iter([[False, True], [False, False], [True, True], [True, False]])
    object.__setattr__(where, "is_target", lambda images: next(calls))
    (found,) = attack(where, [Scripted()], (0, 1), progress=False)
    assert (found.unattacked, found.original) == (0.25, 0.75)
    assert found.success.value == 0.75 and found.success.count == 4
    assert found.success.low <= 0.75 <= found.success.high
    assert found.by_seed == (1.0, 0.5) and found.found == ("word 0", "word 1")
    assert found.curve == ((1.0, 0.0), (2.0, 0.75))
    assert found.budget["steps"] == 3 and found.floor is None


def test_unknown_attacks_are_refused(pipe) -> None:
    assert check_names(["all"]) == list(ATTACKS)
    where = scene(pipe)
    with pytest.raises(ValueError, match="unknown attack 'magic'"):
        attack(where, ["magic"])
    with pytest.raises(ValueError, match="at least one seed"):
        attack(where, [Removal()], ())


def test_a_scene_needs_an_original_and_a_place_for_the_target(pipe) -> None:
    with pytest.raises(ValueError, match="no original model"):
        AttackTarget(pipe, "dog", lambda images: [])
    with pytest.raises(ValueError, match="has no {}"):
        AttackTarget(pipe, "dog", lambda images: [], ["a dog"], adapter_name="x")
