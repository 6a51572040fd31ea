from __future__ import annotations

import functools
import json

import pytest
import torch
from conftest import latents
from drawn import main
from launched import run
from tiny import add_other_adapter

from diffusers_fdu.evaluation.images import MANIFEST, Request, draw, load_image_set
from diffusers_fdu.evaluation.prompt_grid import CIFAR10, UNLEARNCANVAS, PromptGrid
from diffusers_fdu.evaluation.protocols import PROTOCOLS, UnlearningTask, resolve_protocol
from diffusers_fdu.evaluation.setup import EMOJI
from diffusers_fdu.pipelines.generate import check_pictures

SETTINGS = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": None}
REQUESTS = [
    Request("a dog", 3, "target", {"object": "dog"}),
    Request("a cat", 4, "retain", {"object": "cat"}),
    Request("a tree", 5, "retain", {"object": "tree"}),
]


# Canvas


def test_articles_go_with_the_names() -> None:
    assert EMOJI.prompt({"object": "owl", "style": "noto"}) == "an owl emoji in noto style"
    assert EMOJI.prompt({"object": "{}", "style": "blob"}) == "a {} emoji in blob style"
    assert EMOJI.prompt({"object": "dog", "style": "{}"}) == "a dog emoji in {} style"


def test_a_name_is_in_its_domain_whatever_its_kind() -> None:
    assert EMOJI.domain_of("blob", "object") == "style"
    assert EMOJI.domain_of("Dog", "object") == "object"
    assert EMOJI.domain_of("Snoopy", "object") == "object"
    with pytest.raises(ValueError, match="kind 'prompt'"):
        EMOJI.domain_of("Snoopy", "prompt")


def test_others_leave_the_targets_out() -> None:
    assert len(EMOJI.others("object", ["dog"])) == 31
    assert len(EMOJI.across("object")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "a {object}"}, "must hold each"),
        ({"template": "a {object} {style} {colour}"}, "must hold each"),
        ({"domains": {"object": ("dog", "Dog"), "style": ("noto",)}}, "each once"),
        ({"alone": {"object": ("a {}",)}}, "no prompt"),
        ({"alone": {"object": ("a {}",), "style": ("style",)}}, "has no {}"),
    ],
)
def test_bad_canvases_are_refused(change: dict, message: str) -> None:
    own = {
        "domains": {"object": ("dog",), "style": ("noto",)},
        "template": "a {object} in {style}",
        "alone": {"object": ("a {}",), "style": ("in {}",)},
    }
    with pytest.raises(ValueError, match=message):
        PromptGrid(**{**own, **change})


# Protocols


def counts(requests: list[Request]) -> dict[str, int]:
    parts = [request.part for request in requests]
    return {part: parts.count(part) for part in dict.fromkeys(parts)}


def test_unlearncanvas_draws_every_object_in_every_style() -> None:
    plan = resolve_protocol("unlearncanvas")
    found = plan.requests(UnlearningTask(UNLEARNCANVAS, ["Van Gogh"], "style"))
    assert counts(found) == {"target": 20 * 5, "retain": 20 * 50 * 5}
    assert (plan.num_inference_steps, plan.guidance_scale) == (100, 9.0)
    assert {request.seed for request in found} == {188, 288, 588, 688, 888}
    assert found[0].prompt == "A Architectures image in Van Gogh style."  # as published
    assert len({(r.prompt, r.seed) for r in found}) == len(found)


def test_mace_draws_200_of_every_class_and_synonym() -> None:
    plan = resolve_protocol("mace")
    found = plan.requests(UnlearningTask(CIFAR10, ["dog"], "object"))
    assert counts(found) == {"target": 200, "synonyms": 600, "retain": 1800}
    assert {r.prompt for r in found if r.part == "synonyms"} == {
        "a photo of the canine",
        "a photo of the pooch",
        "a photo of the hound",
    }
    assert all(r.expected == {"object": "dog"} for r in found if r.part == "synonyms")
    assert (plan.num_inference_steps, plan.guidance_scale) == (50, 7.5)


def test_concept_ablation_draws_200_of_target_anchor_and_neighbours() -> None:
    plan = resolve_protocol("concept-ablation")
    near = ["beagle", "basset hound", "harrier", "foxhound"]
    asked = UnlearningTask(CIFAR10, ["Snoopy"], "object", ["dog"], near)
    found = plan.requests(asked)
    assert counts(found) == {"target": 200, "anchor": 200, "retain": 800}
    assert (plan.num_inference_steps, plan.guidance_scale, plan.extra) == (50, 6.0, {"eta": 1.0})
    own = plan.requests(UnlearningTask(CIFAR10, ["dog"], "object", ["cat"]))
    assert {r.expected["object"] for r in own if r.part == "retain"}.isdisjoint({"dog", "cat"})


@pytest.mark.parametrize(
    ("target", "domain", "synonyms"), [("dog", "object", 8), ("blob", "style", 0)]
)
def test_quick_draws_a_hundred(target: str, domain: str, synonyms: int) -> None:
    found = resolve_protocol("quick").requests(UnlearningTask(EMOJI, [target], domain))
    own = counts(found)
    assert own["target"] == 32 and own.get("synonyms", 0) == synonyms
    assert 60 <= own["retain"] <= 62
    assert len({request.seed for request in found}) == len(found)
    for request in found:
        is_own = request.expected[domain] == target
        assert is_own == (request.part in ("target", "synonyms"))
    other = "style" if domain == "object" else "object"
    seen = {request.expected[other] for request in found if request.part == "target"}
    assert seen == set(EMOJI.domains[other])
    kept = {request.expected[other] for request in found if request.part == "retain"}
    assert kept == set(EMOJI.domains[other])


def test_several_targets_share_the_pictures() -> None:
    found = resolve_protocol("quick").requests(UnlearningTask(EMOJI, ["dog", "cat"], "object"))
    names = [request.expected["object"] for request in found if request.part == "target"]
    assert names.count("dog") == names.count("cat") == 16
    kept = {request.expected["object"] for request in found if request.part == "retain"}
    assert kept.isdisjoint({"dog", "cat"})


def test_what_departs_from_the_publication_is_said() -> None:
    assert "not as published" not in PROTOCOLS["mace"].about
    changed = resolve_protocol("mace", seeds=range(3), num_inference_steps=None)
    assert changed.about.endswith("not as published: seeds")
    assert len(changed.requests(UnlearningTask(CIFAR10, ["dog"], "object"))) == 13 * 3


def test_unknown_protocols_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="choose unlearncanvas"):
        resolve_protocol("slow")
    with pytest.raises(TypeError, match="unknown option 'step': choose seeds"):
        resolve_protocol("quick", step=3)
    with pytest.raises(ValueError, match="at least 1"):
        resolve_protocol("quick", num_inference_steps=0)
    with pytest.raises(ValueError, match="at least one"):
        resolve_protocol("quick", seeds=[])


# Galleries


def bytes_of(gallery) -> list[bytes]:
    return [image.tobytes() for image in gallery.images]


def test_pictures_are_those_of_the_pipe(pipe) -> None:
    own = draw(pipe, REQUESTS, SETTINGS)
    alone = pipe(
        "a cat",
        generator=torch.Generator().manual_seed(4),
        num_inference_steps=2,
        guidance_scale=3.0,
    ).images[0]
    difference = torch.tensor(list(own.images[1].tobytes())) - torch.tensor(list(alone.tobytes()))
    assert difference.abs().max() <= 1  # batches differ by rounding


def test_a_folder_gives_the_same_pictures_again(pipe, tmp_path) -> None:
    first = draw(pipe, REQUESTS, SETTINGS, tmp_path / "a")
    assert bytes_of(first) == bytes_of(draw(pipe, REQUESTS, SETTINGS))
    kept = load_image_set(tmp_path / "a")
    assert bytes_of(kept) == bytes_of(first)
    assert [r.prompt for r in kept.requests] == [r.prompt for r in REQUESTS]
    assert [r.prompt for r in kept.of("retain").requests] == ["a cat", "a tree"]
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert manifest["about"]["settings"] == {"num_inference_steps": 2, "guidance_scale": 3.0}
    assert manifest["pictures"]["1"]["seed"] == 4


def counted(pipe, monkeypatch) -> list[int]:
    """The number of pictures of every call."""
    calls: list[int] = []
    own = type(pipe).__call__

    @functools.wraps(own)
    def call(self, prompt, **kwargs):
        calls.append(len(prompt))
        return own(self, prompt, **kwargs)

    monkeypatch.setattr(type(pipe), "__call__", call)
    return calls


def test_an_interrupted_run_goes_on(pipe, tmp_path, monkeypatch) -> None:
    calls = counted(pipe, monkeypatch)
    own = type(pipe).__call__

    @functools.wraps(own)
    def broken(self, prompt, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, prompt, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "__call__", broken)
        with pytest.raises(KeyboardInterrupt):
            draw(pipe, REQUESTS, SETTINGS, tmp_path, batch=1)
    assert calls == [1, 1]
    with pytest.raises(ValueError, match="not all of them yet"):
        load_image_set(tmp_path)
    found = draw(pipe, REQUESTS, SETTINGS, tmp_path, batch=1)
    assert calls == [1, 1, 1]
    assert bytes_of(found) == bytes_of(draw(pipe, REQUESTS, SETTINGS, batch=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
        MANIFEST,
    ]


def test_a_changed_picture_is_drawn_again(pipe, tmp_path, monkeypatch) -> None:
    first = draw(pipe, REQUESTS, SETTINGS, tmp_path)
    (tmp_path / "00001.png").write_bytes((tmp_path / "00000.png").read_bytes())
    with pytest.raises(ValueError, match="was changed"):
        load_image_set(tmp_path)
    calls = counted(pipe, monkeypatch)
    again = draw(pipe, REQUESTS, SETTINGS, tmp_path)
    assert calls == [1]
    assert bytes_of(again)[0] == bytes_of(first)[0]


def test_other_settings_and_models_are_refused(pipe, tmp_path) -> None:
    draw(pipe, REQUESTS[:1], SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="another model, or drawn with other settings"):
        draw(pipe, REQUESTS[:1], {**SETTINGS, "guidance_scale": 4.0}, tmp_path)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1)
    with pytest.raises(ValueError, match="another model"):
        draw(pipe, REQUESTS[:1], SETTINGS, tmp_path)


def test_the_pipe_stays_as_it_was(pipe) -> None:
    before, state = latents(pipe), torch.get_rng_state()
    scheduler = pipe.scheduler
    draw(pipe, REQUESTS, SETTINGS)
    assert pipe.scheduler is scheduler and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(latents(pipe), before)


def test_folders_that_hold_something_else_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no pictures"):
        load_image_set(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(ValueError, match="no manifest"):
        load_image_set(tmp_path)


def test_videos_are_refused() -> None:
    class Video:
        def __call__(self, prompt, num_frames=3, output_type="pil", generator=None): ...

    with pytest.raises(ValueError, match="Video draws videos"):
        check_pictures(Video())


def test_two_processes_draw_what_one_draws(tmp_path) -> None:
    for together in (False, True):
        run(main, str(tmp_path / str(together)), together=together)
    one, two = (load_image_set(tmp_path / str(together)) for together in (False, True))
    assert bytes_of(one) == bytes_of(two)
    assert [r.seed for r in two.requests] == list(range(6))
    names = {path.name for path in (tmp_path / "True").iterdir()}
    assert names == {MANIFEST, *(f"{i:05}.png" for i in range(6))}


def test_adapters_that_were_switched_off_are_another_model(pipe, tmp_path) -> None:
    add_other_adapter(pipe)
    draw(pipe, REQUESTS[:1], SETTINGS, tmp_path)
    pipe.disable_lora()
    with pytest.raises(ValueError, match="another model"):
        draw(pipe, REQUESTS[:1], SETTINGS, tmp_path)
    pipe.enable_lora()
    pipe.set_adapters(["other"], [0.3])
    with pytest.raises(ValueError, match="another model"):
        draw(pipe, REQUESTS[:1], SETTINGS, tmp_path)


def test_one_negative_prompt_is_for_all_pictures(pipe) -> None:
    plain = draw(pipe, REQUESTS, SETTINGS)
    other = draw(pipe, REQUESTS, {**SETTINGS, "negative_prompt": "a tree"})
    alone = draw(pipe, REQUESTS[1:2], {**SETTINGS, "negative_prompt": "a tree"})
    assert bytes_of(plain) != bytes_of(other)
    assert bytes_of(alone)[0] == bytes_of(other)[1]
