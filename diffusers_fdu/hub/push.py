"""To the Hub: an adapter, its recipe, its card and its pictures, in one commit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..adapters.download import LIBRARY
from ..adapters.hub_files import CARD_NAME, check_repo_id, files_to_push, is_pushed
from ..adapters.read import read_adapter
from ..adapters.recipe import EMBEDDED, RECIPE_NAME, rename_base_models
from ..utils.hub_errors import translated_errors
from ..utils.io import json_text
from ..utils.markup import cleaned
from .card import base_model_id, card_text


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    draw: Callable[[Path], Any] | None = None,
) -> str:
    """Put an adapter on the Hub, from where plain diffusers loads it, and return its address.

    The weights, `recipe.json`, `evaluation.json`, `before_after.png`, `images/*.png` and a model
    card are pushed; nothing else in the folder is, and what an earlier push left there and the
    folder no longer has is taken away. A path that the base model was loaded from is not pushed.

    Args:
        folder: the folder that the adapter was saved to; it stays as it is.
        repo_id: the repository, `user/name`; it is made if it is missing.
        private: whether the repository is private; by default it stays as it is.
        token: the token of a user who may write there; by default that of whoever is logged in.
        commit_message: the message of the commit; by default one that names the adapter.
        base_model: the base model's name on the Hub, `org/name`, or "" if it is not there; by
            default the one that the recipe names.
        license: the base model's license, as the Hub names it, such as "apache-2.0"; by default
            the card states none.
        draw: a function that puts pictures into the folder, called once all is checked.

    Raises:
        ValueError: if the folder holds no adapter to be trusted, a name is bad, or the base model
            is not known, before anything is sent; if an existing repository is not as `private`
            says.
        HubError: with the fix, if the Hub or the network fails; pushing again goes on.

    Example:
        >>> push("forget-dog", "me/no-dog")  # doctest: +SKIP
        'https://huggingface.co/me/no-dog'
    """
    check_repo_id(repo_id)
    adapter_file = read_adapter(folder)
    base = base_model_id(adapter_file, base_model)
    if draw is not None:
        draw(Path(folder))
    contents: dict[str, Path | bytes] = {**files_to_push(adapter_file)}
    contents[CARD_NAME] = card_text(adapter_file, repo_id, base, license).encode()
    # The base model's name in place of the paths that it was loaded from.
    recipe = rename_base_models(
        adapter_file.recipe, lambda name: base if base or name != EMBEDDED else name
    )
    if recipe != adapter_file.recipe:
        contents[RECIPE_NAME] = json_text(recipe).encode()
    adapter_name = cleaned(adapter_file.recipe.get("adapter_name") or "adapter", 60)
    api = HfApi(token=token, library_name=LIBRARY)
    with translated_errors(repo_id, "push"):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
        if private is not None and info.private is not None and info.private != private:
            state = "private" if info.private else "public"
            raise ValueError(f"{repo_id!r} is {state} already: change it there, or omit `private`")
        pushed_before = {file.rfilename for file in info.siblings or []}
        stale = sorted(name for name in pushed_before - contents.keys() if is_pushed(name))
        additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
        deletions = [CommitOperationDelete(name) for name in stale]
        message = commit_message or f"Push {adapter_name}"
        api.create_commit(repo_id, [*additions, *deletions], commit_message=message)
    return str(url)
