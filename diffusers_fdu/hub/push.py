"""To the Hub: an adapter, its recipe, its card and its pictures, in one commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..adapters.adapter_file import AdapterFile
from ..adapters.contents import CARD_NAME, EMBEDDED, check_repo_id, contents, is_ours
from ..adapters.download import LIBRARY
from ..adapters.read import read_adapter
from ..adapters.recipe import RECIPE_NAME, public
from ..utils.hub_errors import translated_errors
from ..utils.io import json_text
from ..utils.markup import cleaned
from .card import base_name, card


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
    """Put an adapter on the Hub, from where plain diffusers loads it.

        push("runs/snoopy", "me/no-snoopy")

    The weights, `recipe.json`, `evaluation.json`, `before_after.png` and `images/*.png` go, and a
    model card; nothing else in the folder does, and the folder stays as it is. What an earlier
    push left there and is not in the folder any more is taken away. If the base model was loaded
    from a path, the pushed recipe does not say which.

    Args:
        folder: what the adapter was saved to.
        repo_id: `user/name`; made if missing.
        private: whether it is; None: as it is, or as the Hub makes new ones.
        token: of a user who may write there; None: of whoever is logged in.
        commit_message: None: one that names the adapter.
        base_model: the base model's name on the Hub, `org/name`; "": it is not there; None: the
            recipe's.
        license: of the base model, as the Hub names licenses, such as "apache-2.0"; None: the
            card states none.
        draw: called with the folder once all is checked, to put pictures there.

    Returns:
        The repository's address.

    Raises:
        ValueError: before anything is sent: if the folder holds no adapter to be trusted, for a
            bad name, or if the base model is not known; and if `private` is not how an existing
            repository is.
        HubError: with the fix, if the Hub or the network fails; pushing again goes on.
    """
    check_repo_id(repo_id)
    found = read_adapter(folder)
    base = base_name(found, base_model)
    if draw is not None:
        draw(Path(folder))
    files = contents(found)
    text = card(found, repo_id, base, license)
    additions = [CommitOperationAdd(CARD_NAME, text.encode())]
    for name, path in files.items():
        content = _public_recipe(found, base) if name == RECIPE_NAME else None
        additions.append(CommitOperationAdd(name, str(path) if content is None else content))
    message = (
        commit_message or f"Push {cleaned(found.recipe.get('adapter_name') or 'adapter', 60)}"
    )
    api = HfApi(token=token, library_name=LIBRARY)
    with translated_errors(repo_id, "push"):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.model_info(repo_id)
        if private is not None and there.private is not None and there.private != private:
            raise ValueError(
                f"{repo_id!r} is there already and {'private' if there.private else 'public'}: "
                "change that in its settings, or leave `private` out"
            )
        sent = {operation.path_in_repo for operation in additions}
        stale = [file.rfilename for file in there.siblings or [] if is_ours(file.rfilename)]
        deletions = [CommitOperationDelete(name) for name in stale if name not in sent]
        api.create_commit(repo_id, [*additions, *deletions], commit_message=message)
    return str(url)


def _public_recipe(found: AdapterFile, base: str | None) -> bytes | None:
    """The recipe with the base model's name for paths that it was loaded from; None: as it is."""
    recipe = public(found.recipe, lambda own: base if base or own != EMBEDDED else own)
    if recipe == found.recipe:
        return None
    return json_text(recipe).encode()
