from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from local_hub import FIXTURES, content, refused
from safetensors.torch import load_file, save_file

from diffusers_fdu.adapters import download
from diffusers_fdu.adapters.hub_files import PNG, files_to_pull, files_to_push, is_repo_id
from diffusers_fdu.adapters.read import read_adapter

_hub, local_hub, hub_client, trained, folder = FIXTURES
WEIGHTS = "pytorch_lora_weights.safetensors"
PUSH = "push(folder, repo, base_model='org/base')"
PULL = "str(pull(repo, out))"


def test_pull_takes_these_files_and_checks_them(local_hub, hub_client, folder, tmp_path) -> None:
    files = {**content(folder), "README.md": b"# mine\n", "evil.py": b"1", "model.bin": b"1"}
    repo = local_hub.add("you/dog", files)
    out = tmp_path / "out"
    assert hub_client.run(PULL, repo="you/dog", out=str(out)) == str(out)
    assert content(out) == {**content(folder), "README.md": b"# mine\n"}
    assert not local_hub.asked(".*(evil|model.bin)")
    # Again, over it, after it has changed; and an older commit of it.
    changed = {**files, "recipe.json": b'{"adapter_name": "second"}'}
    sha = repo.commits[-1][0]
    del changed["README.md"]
    repo.commit("second", changed)
    hub_client.run(PULL, repo="you/dog", out=str(out))
    assert content(out) == {**content(folder), "recipe.json": changed["recipe.json"]}
    first = hub_client.run("str(pull(repo, revision=sha))", repo="you/dog", sha=sha)
    assert json.loads((Path(first) / "recipe.json").read_text())["f"] == "hellinger"
    assert refused(hub_client, "pull('you/dog', revision='v9')").message.startswith(
        "cannot pull 'you/dog': it has no such revision"
    )


def test_pull_keeps_off_folders_with_other_files(local_hub, hub_client, folder, tmp_path) -> None:
    local_hub.add("you/dog", content(folder))
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("a project")
    found = refused(hub_client, PULL, repo="you/dog", out=str(project))
    assert "holds other files and no adapter" in found.message and local_hub.requests == []
    assert content(project) == {"README.md": b"a project"}


def test_pictures_of_the_adapter_that_was_there_go(
    local_hub, hub_client, folder, tmp_path
) -> None:
    """They would be pushed as the new one's."""
    own = {"images/0.png": PNG, "images/new.png": PNG + b"2"}
    local_hub.add("you/pictures", {**content(folder), **own})
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    (out / "images").mkdir()
    for name in ("0.png", "1.png", "notes.txt"):
        (out / "images" / name).write_bytes(PNG + b"old")
    hub_client.run(PULL, repo="you/pictures", out=str(out))
    assert content(out) == {**content(folder), **own, "images/notes.txt": PNG + b"old"}


def test_pictures_alone_count_as_pictures(folder) -> None:
    (folder / "images").mkdir()
    for i in range(64):
        (folder / "images" / f"{i}.png").write_bytes(PNG)
    assert len(files_to_push(read_adapter(folder))) == 66  # weights and recipe
    (folder / "images" / "64.png").write_bytes(PNG)
    with pytest.raises(ValueError, match="more than 64 pictures"):
        files_to_push(read_adapter(folder))


def malicious(kind: str, folder: Path) -> dict[str, bytes]:
    files = content(folder)
    state = load_file(folder / WEIGHTS)
    key = next(iter(state))
    if kind == "pickle":
        del files[WEIGHTS]
        return {**files, "pytorch_lora_weights.bin": b"\x80\x04."}
    if kind == "climbs":
        return {**files, "../outside.png": b"1"}
    if kind == "absolute":
        return {**files, "/etc/passwd": b"1"}
    if kind == "backslash":
        return {**files, "images\\..\\..\\x.png": b"1"}
    if kind == "odd key":
        state["unet.__class__.evil"] = torch.zeros(2, 2)
    if kind == "not finite":
        state[key] = torch.full_like(state[key], float("nan"))
    if kind == "wrong size":
        state[key] = torch.zeros(3, 5)
    if kind == "no safetensors":
        return {**files, WEIGHTS: b"\x80\x04K\x01."}
    if kind == "recipe is a list":
        return {**files, "recipe.json": b"[1]"}
    if kind == "picture is a script":
        return {**files, "images/0.png": b"<script>"}
    save_file(state, folder / "changed", {"format": "pt"})
    return {**files, WEIGHTS: (folder / "changed").read_bytes()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", "'pytorch_lora_weights.bin', a pickle, which could run any code"),
        ("climbs", "'../outside.png' leaves the folder"),
        ("absolute", "'/etc/passwd' leaves the folder"),
        ("backslash", "leaves the folder"),
        ("odd key", "unexpected key"),
        ("not finite", "not finite"),
        ("wrong size", "not of rank"),
        ("no safetensors", "no adapter to be trusted"),
        ("recipe is a list", "holds no JSON object"),
        ("picture is a script", "is no PNG"),
    ],
)
def test_what_cannot_be_trusted_is_refused(
    local_hub, hub_client, folder, tmp_path, kind, message
) -> None:
    repo = f"you/{kind.replace(' ', '-')}"
    local_hub.add(repo, malicious(kind, folder))
    found = refused(hub_client, PULL, repo=repo, out=str(tmp_path / "out"))
    assert found.kind == "ValueError" and message in found.message
    assert not (tmp_path / "out").exists() and not (tmp_path / "outside.png").exists()


def test_large_files_are_not_even_fetched(local_hub, hub_client, folder, tmp_path) -> None:
    local_hub.add("you/large", content(folder))
    code = "str(pull('you/large', max_bytes=1000))"
    found = refused(hub_client, code)
    assert "pass max_bytes" in found.message and not local_hub.asked(".*/resolve/")
    with pytest.raises(ValueError, match="recipe.json has"):
        files_to_pull({WEIGHTS: 10, "recipe.json": 2**40}, 100)
    with pytest.raises(ValueError, match="unknown number"):
        files_to_pull({WEIGHTS: None}, 100)
    with pytest.raises(ValueError, match="pictures"):
        files_to_pull({WEIGHTS: 1, **{f"images/{i}.png": 1 for i in range(65)}}, 100)


def test_without_a_hub_what_was_pulled_is_used(local_hub, hub_client, folder, tmp_path) -> None:
    local_hub.add("you/kept", content(folder))
    first = hub_client.run("str(pull('you/kept'))")
    local_hub.fail("GET /api/models/you", 503, 20)
    assert hub_client.run("str(pull('you/kept'))") == first
    found = refused(hub_client, "pull('you/never')")
    assert found.kind == "Unreachable" and "the Hub failed (HTTP 503)" in found.message
    local_hub.faults.clear()
    local_hub.cut("GET /api/models/you", 0, 20)
    assert hub_client.run("str(pull('you/kept'))") == first
    found = refused(hub_client, "load_unlearned(None, 'you/never')")
    assert found.message.startswith("there is no folder 'you/never', and cannot pull")
    assert "check the network" in found.message
    local_hub.faults.clear()
    found = refused(hub_client, "load_unlearned(None, 'you/never')")
    assert "no such repository, or it is private: check the name" in found.message


def test_adapters_are_found_by_their_tags(local_hub, hub_client, folder) -> None:
    for repo, target, base in (
        ("me/a", "Mickey Mouse", "org/base"),
        ("me/b", "dog", "org/base"),
        ("me/c", "dog", "org/other"),
        ("me/d", "🦊", "org/base"),
    ):
        recipe = json.loads((folder / "recipe.json").read_text())
        recipe["concepts"] = [{"target": target, "anchor": "cat"}]
        (folder / "recipe.json").write_text(json.dumps(recipe))
        hub_client.run(
            "push(folder, repo, base_model=base)", folder=str(folder), repo=repo, base=base
        )
    local_hub.repos["me/c"].downloads = 7
    local_hub.add("you/other", {"README.md": b"---\ntags:\n- unlearns:dog\n---\n"})
    code = "[(f.repo_id, f.base_model, f.targets) for f in find_adapters(*wanted, **limits)]"

    def found(*wanted, **limits):
        return hub_client.run(code, wanted=wanted, limits=limits)

    assert [each[0] for each in found()] == ["me/c", "me/a", "me/b", "me/d"]
    assert found(None, "DOG") == [["me/c", "org/other", ["dog"]], ["me/b", "org/base", ["dog"]]]
    assert found("org/base", "dog") == [["me/b", "org/base", ["dog"]]]
    assert found("org/base", "mickey  mouse") == [["me/a", "org/base", ["mickey-mouse"]]]
    assert [each[0] for each in found(None, "🦊")] == ["me/d"] and found(None, "🐶") == []
    assert len(found(limit=2)) == 2
    one = hub_client.run("vars(find_adapters(None, 'dog', limit=1)[0])")
    assert one["downloads"] == 7 and one["last_modified"].startswith("2026-01-02")
    assert "no name of a repository" in refused(hub_client, "find_adapters('no name')").message


def test_another_base_model_is_a_warning_and_another_architecture_an_error(
    local_hub, hub_client, folder
) -> None:
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe.update(base_model="org/base", adapter_name=None)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    local_hub.add("you/fits", content(folder))
    code = """
from conftest import build_tiny_pipe
from diffusers_fdu.emoji import load_emoji_pipeline
pipe = load_emoji_pipeline() if name == "emoji" else build_tiny_pipe()
pipe.register_to_config(_name_or_path=name)
load_unlearned(pipe, source)
pipe.get_active_adapters()
"""
    assert hub_client.run(code, name="ORG/base", source="you/fits") == ["fits"]
    assert hub_client.warnings == []
    assert hub_client.run(code, name="/models/base", source="you/fits") == ["fits"]
    assert hub_client.warnings == []
    for source in ("you/fits", str(folder)):
        hub_client.run(code, name="org/other", source=source)
        (warning,) = hub_client.warnings
        assert "trained on 'org/base', and this is 'org/other'" in warning
    found = refused(hub_client, code, name="emoji", source="you/fits")
    assert (
        found.kind == "ValueError" and "no adapter for this UNet2DConditionModel" in found.message
    )
    assert "trained on a 'StableDiffusionPipeline'" in found.message


def test_names_of_repositories() -> None:
    for good in ("me/dog", "Org-1/a_b.c", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
        assert is_repo_id(good)
    for bad in ("dog", "/dog", "./dog", "../dog", "a/b/c", "a/b.git", "a/b-", "~/dog", "a/", ""):
        assert not is_repo_id(bad)


def test_a_copy_that_fails_leaves_no_folder(folder, tmp_path, monkeypatch) -> None:
    def full(*_):
        raise OSError("No space left on device")

    files = files_to_push(read_adapter(folder))
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        download._copy(files, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_card_elsewhere_is_no_reason_to_refuse(folder, tmp_path) -> None:
    """It is made anew."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "notes.md").write_text("mine")
    (copy / "README.md").unlink(missing_ok=True)
    (copy / "README.md").symlink_to(tmp_path / "notes.md")
    files_to_push(read_adapter(copy))
