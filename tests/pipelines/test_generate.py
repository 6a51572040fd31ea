from __future__ import annotations

import pytest
import torch
from conftest import latents

from diffusers_fdu.pipelines.generate import generate

PROMPTS = ["a dog", "a cat", "a tree"]
RUN = {"num_inference_steps": 2, "guidance_scale": 3.0}


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_pictures_are_those_of_a_pipe_with_one_generator_for_each(pipe) -> None:
    pipe.set_progress_bar_config(disable=True)
    seeds = [7, 3, 2**40]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    negative = ["red"] * 3
    expected = pipe(PROMPTS, generator=generators, negative_prompt=negative, **RUN).images
    assert pixels(generate(pipe, PROMPTS, seeds, negative_prompt="red", **RUN)) == pixels(expected)
    alone = pipe("a cat", generator=torch.Generator().manual_seed(3), **RUN).images
    assert pixels(generate(pipe, ["a cat"], [3], **RUN)) == pixels(alone)


def test_the_pipe_and_the_global_generator_are_as_they_were(pipe) -> None:
    pipe.set_progress_bar_config(desc="mine")
    before, scheduler, drawn = torch.get_rng_state(), pipe.scheduler, latents(pipe)
    torch.set_rng_state(before)
    generate(pipe, PROMPTS, range(3), batch=2, **RUN)
    assert torch.equal(torch.get_rng_state(), before) and pipe.scheduler is scheduler
    assert pipe._progress_bar_config == {"desc": "mine"} and torch.equal(latents(pipe), drawn)


def test_batches_are_halved_when_the_memory_runs_out(pipe, monkeypatch) -> None:
    own, sizes, kept = type(pipe).__call__, [], []

    def call(self, prompt, **kwargs):
        sizes.append(len(prompt))
        if len(prompt) > 1:
            raise torch.OutOfMemoryError
        return own(self, prompt, **kwargs)

    expected = [generate(pipe, [p], [i], **RUN)[0] for i, p in enumerate(PROMPTS)]
    monkeypatch.setattr(type(pipe), "__call__", call)
    with pytest.warns(RuntimeWarning, match="1 pictures at a time"):
        images = generate(pipe, PROMPTS, range(3), batch=2, on_images=kept.extend, **RUN)
    assert sizes == [2, 1, 1, 1] and pixels(images) == pixels(kept) == pixels(expected)


def test_prompts_and_seeds_go_together(pipe) -> None:
    assert generate(pipe, [], [], **RUN) == []
    with pytest.raises(ValueError, match="shorter"):
        generate(pipe, PROMPTS, [1], **RUN)
