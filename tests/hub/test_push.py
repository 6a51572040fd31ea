from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from local_hub import FIXTURES, content, refused
from PIL import Image
from safetensors.torch import load_file

from diffusers_fdu.adapters.evaluation_file import write_evaluation

_hub, local_hub, hub_client, trained, folder = FIXTURES
WEIGHTS = "pytorch_lora_weights.safetensors"
PUSH = "push(folder, repo, base_model='org/base')"
PULL = "str(pull(repo, out))"


def picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_one_commit_of_these_files_and_no_others(local_hub, hub_client, folder) -> None:
    measured = {"protocol": "p", "images": 1, "seeds": [], "judge": "j"}
    write_evaluation({**measured, "metrics": {"ua": {"value": 1.0}}}, folder)
    picture(folder / "before_after.png")
    picture(folder / "images" / "0.png")
    for stray in (".env", "state/checkpoint.pt", "notes.txt", "images/raw.npy", "summary.json"):
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_text("secret")
    before = content(folder)
    url = hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    assert url == f"{local_hub.endpoint}/me/dog"
    repo = local_hub.repos["me/dog"]
    assert set(repo.files) - {".gitattributes"} == {
        WEIGHTS,
        "recipe.json",
        "evaluation.json",
        "before_after.png",
        "images/0.png",
        "README.md",
    }
    assert repo.messages == ["first", "Push forget-dog"] and not repo.private
    assert repo.files[WEIGHTS] == before[WEIGHTS]
    assert "base_model:adapter:org/base" in repo.tags()
    assert content(folder) == before
    # Once more: nothing has changed, so nothing is sent, and there is no second commit.
    hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    assert len(repo.commits) == 2 and len(local_hub.asked("PUT ")) == 3
    # What is not in the folder any more is taken away.
    for gone in ("evaluation.json", "images/0.png"):
        (folder / gone).unlink()
    hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    assert set(repo.files) - {".gitattributes"} == {
        WEIGHTS,
        "recipe.json",
        "before_after.png",
        "README.md",
    }
    assert b"not evaluated" in repo.files["README.md"]


def test_paths_of_this_machine_stay_here(local_hub, hub_client, folder) -> None:
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["base_model"] = "/home/someone/secret"
    recipe["merged"] = [{"base_model": "/home/someone/secret", "adapter_name": "a"}]
    (folder / "recipe.json").write_text(json.dumps(recipe))
    error = refused(hub_client, "push(folder, 'me/dog')", folder=str(folder))
    assert error.kind == "ValueError" and "base_model='org/name'" in error.message
    assert local_hub.requests == []
    hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    files = local_hub.repos["me/dog"].files
    assert not any(b"secret" in each for each in files.values())
    assert json.loads(files["recipe.json"]) == {
        **recipe,
        "base_model": "org/base",
        "merged": [{"base_model": "org/base", "adapter_name": "a"}],
    }


PUSH_FROM_A_PIPE = """
from tiny import unlearner
from conftest import build_tiny_pipe

worker = unlearner(build_tiny_pipe(), steps=2)
worker.unlearn("dog", "cat")
worker.push_to_hub("me/direct", private=True, base_model="org/base", license="mit")
"""


def test_an_unlearner_pushes_with_pictures(local_hub, hub_client) -> None:
    hub_client.run(PUSH_FROM_A_PIPE)
    repo = local_hub.repos["me/direct"]
    assert repo.private and {f"images/{i}.png" for i in range(4)} <= set(repo.files)
    card = repo.files["README.md"].decode()
    assert "<Gallery />" in card and "text: a dog\n" in card and "url: images/0.png" in card
    assert "license:mit" in repo.tags()
    # Private: found and loaded by who may, by its name.
    code = "[f.repo_id for f in find_adapters(target='Dog', token=token)]"
    assert hub_client.run(code, token="hf_me") == ["me/direct"]
    assert hub_client.run(code, token="hf_you") == []
    found = refused(hub_client, "pull('me/direct', token='hf_you')")
    assert "no such repository, or it is private" in found.message
    loaded = """
pipe = build_tiny_pipe()
before = len(pipe.get_list_adapters())
load_unlearned(pipe, 'me/direct', component='unet')
pipe.get_active_adapters()
"""
    assert hub_client.run("from conftest import build_tiny_pipe\n" + loaded) == ["forget-dog"]
    assert hub_client.warnings == []


def test_links_out_of_the_folder_are_not_pushed(local_hub, hub_client, folder, tmp_path) -> None:
    (tmp_path / "secret").write_text("{}")
    for name in ("evaluation.json", "images/0.png"):
        (folder / "images").mkdir(exist_ok=True)
        (folder / name).symlink_to(tmp_path / "secret")
        found = refused(hub_client, PUSH, folder=str(folder), repo="me/dog")
        assert "leaves the folder" in found.message
        (folder / name).unlink()
    (folder / "images" / "0.png").write_text("no picture")
    assert "no PNG" in refused(hub_client, PUSH, folder=str(folder), repo="me/dog").message
    assert local_hub.requests == []


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, "POST /api/repos/create", "run `hf auth login`, or pass a token"),
        (403, ".*/preupload/", "take one with write access"),
        (409, ".*/commit/", "something else is changing it: try again"),
        (429, ".*/commit/", "too many requests: wait"),
        (503, ".*/commit/", "the Hub failed (HTTP 503): try again: what was uploaded is not"),
        (500, "PUT /large/", "the Hub failed (HTTP 500): try again"),
        (404, ".*/preupload/", "there is no such repository"),
    ],
)
def test_errors_name_the_fix_and_a_second_push_ends_the_job(
    local_hub, hub_client, folder, status, kind, message
) -> None:
    before = content(folder)
    local_hub.fail(kind, status, 6)  # the client tries six times
    found = refused(hub_client, PUSH, folder=str(folder), repo="me/dog")
    assert found.kind in ("HubError", "Unreachable")
    assert found.message.startswith("cannot push 'me/dog': ") and message in found.message
    assert content(folder) == before
    local_hub.faults.clear()
    hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    assert local_hub.repos["me/dog"].files[WEIGHTS] == before[WEIGHTS]
    if "commit" in kind:
        assert len(local_hub.asked("PUT ")) == 1  # uploaded once


def test_short_failures_are_bridged(local_hub, hub_client, folder, tmp_path) -> None:
    local_hub.fail("PUT /large/", 502, 2)
    local_hub.cut("PUT /large/", 100, 1)
    hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    assert len(local_hub.asked("PUT ")) == 4
    assert local_hub.repos["me/dog"].files[WEIGHTS] == (folder / WEIGHTS).read_bytes()


def test_a_cut_upload_leaves_nothing_half_done(local_hub, hub_client, folder) -> None:
    before = content(folder)
    local_hub.cut("PUT /large/", 1000, 6)
    found = refused(hub_client, PUSH, folder=str(folder), repo="me/dog")
    assert found.kind == "Unreachable" and "check the network and try again" in found.message
    assert set(local_hub.repos["me/dog"].files) == {".gitattributes"}
    assert content(folder) == before and local_hub.large == {}
    hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    assert set(local_hub.large) == {hashlib.sha256(before[WEIGHTS]).hexdigest()}


def test_who_may_not_is_told_so(local_hub, hub_client, folder) -> None:
    found = refused(hub_client, PUSH, folder=str(folder), repo="you/dog")
    assert "write access" in found.message and "you/dog" not in local_hub.repos
    code = "push(folder, 'me/dog', base_model='org/base', token=token)"
    found = refused(hub_client, code, folder=str(folder), token="hf_wrong")
    assert "token is not valid: run `hf auth login`" in found.message
    hub_client.run(PUSH, folder=str(folder), repo="me/open")
    code = "push(folder, 'me/open', base_model='org/base', private=True)"
    found = refused(hub_client, code, folder=str(folder))
    assert "is public already" in found.message
    assert len(local_hub.repos["me/open"].commits) == 2
    for repo in ("dog", "me/dog/x", "../dog", "me/", "me/a..b", "me/dog.git"):
        found = refused(hub_client, PUSH, folder=str(folder), repo=repo)
        assert "write user/name" in found.message


def test_adapters_on_the_hub_are_described_and_exported(
    local_hub, hub_client, folder, tmp_path
) -> None:
    hub_client.run(PUSH, folder=str(folder), repo="me/dog")
    (line,) = hub_client.run("describe(repo).load", repo="me/dog")
    assert line == "pipe.load_lora_weights('me/dog')"
    both = "[vars(describe(s)) for s in (folder, repo)]"
    own, pulled = hub_client.run(
        f"from diffusers_fdu import describe\n{both}", folder=str(folder), repo="me/dog"
    )
    assert (own.pop("repo_id"), pulled.pop("repo_id")) == (None, "me/dog")
    assert own.pop("path") != pulled.pop("path") and own["norms"] == pulled["norms"]
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for source, file in zip((str(folder), "me/dog"), files, strict=True):
        code = "str(export(source, file, title='x', family='sd'))"
        assert hub_client.run(code, source=source, file=str(file)) == str(file)
    own, pulled = (load_file(file) for file in files)
    assert own.keys() == pulled.keys() and all(torch.equal(own[k], pulled[k]) for k in own)
    found = refused(hub_client, "describe('me/none')")
    assert found.message.startswith("there is no folder 'me/none', and cannot pull")


COMMANDS = """
from typer.testing import CliRunner
from diffusers_fdu.cli import app
result = CliRunner().invoke(app, arguments)
[result.exit_code, result.output, str(result.exception or "")]
"""


def test_the_commands(local_hub, hub_client, folder, tmp_path) -> None:
    def run(*arguments: str):
        return hub_client.run(COMMANDS, arguments=arguments)

    code, output, error = run("push", str(folder), "me/dog", "--base-model", "org/base")
    assert code == 0, error
    assert "pushed to" in output and "pipe.load_lora_weights('me/dog')" in output
    code, output, error = run("pull", "me/dog", "--output-dir", str(tmp_path / "out"))
    assert code == 0, error
    assert content(tmp_path / "out")[WEIGHTS] == (folder / WEIGHTS).read_bytes()
    code, output, error = run("list", "--target", "dog")
    assert code == 0 and output == "me/dog  org/base  dog  0 downloads\n"
    assert run("list", "--target", "cow")[1] == "none found\n"
    data = '---\ntags:\n- diffusers-fdu\n- "unlearns:\\e[31mcow"\n- "base_model:\\e[2J/x"\n---\n'
    local_hub.add("you/escapes", {"README.md": data.encode()})
    output = run("list")[1]
    assert "you/escapes  [2J/x  [31mcow  0 downloads\n" in output
    assert "\x1b" not in output
    assert "no such repository" in run("pull", "me/cow")[2]
    for command in ("push", "pull", "list"):
        assert "Examples" in run(command, "--help")[1]
