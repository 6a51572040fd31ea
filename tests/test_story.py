"""From a process that only has diffusers to a process that only has diffusers, by way of a Hub."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import torch
from conftest import build_tiny_pipe, latents
from local_hub import FIXTURES, environment
from tiny import unlearner

from diffusers_fdu import load_unlearned, stack

_hub, local_hub, hub_client, trained, folder = FIXTURES

PLAIN = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "diffusers_fdu":
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Blocked())
import numpy, torch
from diffusers import StableDiffusionPipeline

base, repos, out = json.loads(sys.argv[1])
pipe = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
pipe.set_progress_bar_config(disable=True)
names = []
for repo in repos:
    names.append(repo.split("/")[1])
    pipe.load_lora_weights(repo, adapter_name=names[-1])
if names:
    pipe.set_adapters(names, [1.0] * len(names))
pipe.unet.eval()
generator = torch.Generator().manual_seed(0)
drawn = pipe("a dog", num_inference_steps=3, generator=generator, output_type="latent").images
numpy.save(out, drawn.numpy())
"""


def plain(local_hub, home, base, repos) -> torch.Tensor:
    """What a process without this library draws with adapters from the Hub."""
    home.mkdir(exist_ok=True)
    out = home / f"{len(list(home.iterdir()))}.npy"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps([str(base), repos, str(out)])],
        env=environment(local_hub, home, token=None),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(out))


def test_push_pull_stack_and_merge(local_hub, hub_client, tmp_path) -> None:
    base = tmp_path / "base"
    build_tiny_pipe().save_pretrained(base)
    own = {}
    for target, anchor in (("dog", "cat"), ("apple", "tree")):
        worker = unlearner(build_tiny_pipe(), rank=2 if target == "dog" else 3)
        worker.unlearn(target, anchor)
        own[target] = worker.save(tmp_path / target)
    repos = [f"me/no-{target}" for target in own]

    for repo, path in zip(repos, own.values(), strict=True):
        code = "push(folder, repo, base_model='org/tiny')"
        hub_client.run(code, folder=str(path), repo=repo)
    found = hub_client.run("[f.repo_id for f in find_adapters('org/tiny')]")
    assert sorted(found) == sorted(repos)
    assert hub_client.run("[f.repo_id for f in find_adapters(target='dog')]") == repos[:1]

    theirs = tmp_path / "theirs"
    hub_client.run("str(pull(repo, out))", repo=repos[0], out=str(theirs))
    name = "pytorch_lora_weights.safetensors"
    assert (theirs / name).read_bytes() == (own["dog"] / name).read_bytes()

    stacked = hub_client.run(
        "from diffusers import StableDiffusionPipeline\n"
        "pipe = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)\n"
        "stack(pipe, repos, [1.0, 0.5])",
        base=str(base),
        repos=repos,
    )
    assert stacked == {"forget-dog": 1.0, "forget-apple": 0.5}

    hub_client.run(
        "push(merge(repos).save(out), 'me/neither', base_model='org/tiny')",
        repos=repos,
        out=str(tmp_path / "neither"),
    )
    card = local_hub.repos["me/neither"].files["README.md"].decode()
    assert "dog" in card and "apple" in card and "not evaluated" in card

    pipe = build_tiny_pipe()
    without = latents(pipe)
    load_unlearned(pipe, own["dog"])
    one = latents(pipe)
    stack(pipe, [own["apple"]])
    both = latents(pipe)
    assert (both - without).abs().max() > 1e-3 and (both - one).abs().max() > 1e-3
    home = tmp_path / "home"
    assert plain(local_hub, home, base, repos[:1]).equal(one)
    for way in (repos, ["me/neither"]):
        torch.testing.assert_close(plain(local_hub, home, base, way), both, atol=5e-5, rtol=0)
