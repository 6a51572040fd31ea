from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import latents
from families import FAMILIES
from PIL import Image
from tiny import add_other_adapter, state, unlearner

from diffusers_fdu import Concept, NegativeGuidance
from diffusers_fdu.hub.preview import card_prompts, draw_pictures, prompt_of


def test_pictures_show_both_and_leave_the_pipe_alone(pipe, tmp_path) -> None:
    worker = unlearner(pipe, steps=6)
    worker.unlearn(["dog", "tree"], ["cat", "house"])
    name = worker.adapter_name
    add_other_adapter(pipe)  # and it alone is active
    pipe.set_progress_bar_config(desc="mine")
    drawn = latents(pipe)
    before, bar = state(pipe), dict(pipe._progress_bar_config)
    paths = draw_pictures(pipe, "unet", name, worker.recipe, worker.pipeline_kwargs, tmp_path)
    assert state(pipe) == before and pipe._progress_bar_config == bar
    assert pipe.get_active_adapters() == ["other"] and torch.equal(latents(pipe), drawn)
    prompts = [prompt_of(path) for path in paths]
    assert [p.name for p in paths] == ["0.png", "1.png", "2.png", "3.png"]
    assert prompts[:2] == ["a dog", "a photo of a tree"]
    assert not any(word in p.split() for p in prompts[2:] for word in ("dog", "tree", "cat"))
    # The halves are what the pipe draws at strengths 0 and 1 with that seed.
    for strength, left in ((0.0, 0), (1.0, 16 + 8)):
        pipe.set_adapters([name], [strength])
        drawn = pipe(prompts[1], num_inference_steps=3, generator=torch.manual_seed(1)).images[0]
        with Image.open(paths[1]) as both:
            half = both.crop((left, 0, left + 16, 16))
        assert half.tobytes() == drawn.convert("RGB").tobytes()


def test_own_prompts_and_retained_ones_are_shown(pipe, tmp_path) -> None:
    worker = unlearner(pipe, steps=1, retain=["a red house", "blue", "photo"])
    concept = Concept("dog", NegativeGuidance(), prompts=["a {} and a {word}", "the {} runs"])
    worker.unlearn(concept)
    paths = draw_pictures(pipe, "unet", worker.adapter_name, worker.recipe, {}, tmp_path)
    assert [prompt_of(p) for p in paths] == ["the dog runs"] * 2 + ["a red house", "blue"]


@pytest.mark.parametrize("target", ["house", "tree"])
def test_without_a_vocabulary_there_are_others_to_draw(target) -> None:
    recipe = {"concepts": [{"target": target, "anchor": None}]}
    found = card_prompts(SimpleNamespace(), recipe)
    assert len(found) == 4 and len(set(found[2:])) == 2
    assert [target in prompt.split() for prompt in found] == [True, True, False, False]
    words = "tree house bicycle mountain cup bridge".split()
    recipe["concepts"][0]["aliases"] = words
    assert len(card_prompts(SimpleNamespace(), recipe)) == 2


def test_videos_are_not_drawn(tmp_path) -> None:
    pipe = next(f for f in FAMILIES.values() if f.name == "LTX-Video").build()
    with pytest.warns(UserWarning, match="LTXPipeline draws videos"):
        assert draw_pictures(pipe, "transformer", "x", {}, {}, tmp_path) == []
    assert not list(tmp_path.iterdir())
