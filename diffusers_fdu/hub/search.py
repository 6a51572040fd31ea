"""Adapters on the Hub, by what they are for and what they forget."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from huggingface_hub import HfApi

from ..adapters.download import LIBRARY
from ..adapters.hub_files import check_repo_id
from ..utils.hub_errors import translated_errors
from ..utils.markup import slug
from .card import OWN_TAG, TARGET_TAG

BASE_TAG = "base_model:"


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter on the Hub, as `find_adapters` finds it.

    Args:
        repo_id: its name there, which `load_unlearned` takes.
        base_model: the base model that it is for; None if that is not on the Hub.
        targets: what it forgets, as in its tags, such as "mickey-mouse".
        downloads: number of downloads in the last 30 days.
        likes: number of users who like it.
        last_modified: time of the last push.
        private: whether only its owner sees it.

    Example:
        >>> found = find_adapters(target="dog")[0]  # doctest: +SKIP
        >>> pipe = load_unlearned(pipe, found.repo_id)  # doctest: +SKIP
    """

    repo_id: str
    base_model: str | None
    targets: tuple[str, ...]
    downloads: int
    likes: int
    last_modified: datetime | None
    private: bool


def find_adapters(
    base_model: str | None = None,
    target: str | None = None,
    *,
    token: str | None = None,
    limit: int | None = None,
) -> list[FoundAdapter]:
    """Find adapters that were pushed to the Hub, by their tags; most downloaded first.

    Args:
        base_model: the base model that they are for, `org/name`; by default any.
        target: what they forget, as the recipe names it, in upper or lower case; by default
            anything.
        token: a token, to find private ones, too; by default that of whoever is logged in.
        limit: the most adapters to find; by default all.

    Raises:
        ValueError: for a bad name or limit.
        HubError: with the fix, if the Hub or the network fails.

    Example:
        >>> [found.repo_id for found in find_adapters(target="dog")]  # doctest: +SKIP
        ['me/no-dog']
    """
    tags = [OWN_TAG]
    if base_model is not None:
        tags.append(BASE_TAG + check_repo_id(base_model))
    if target is not None:
        if not target.strip():
            raise ValueError("target must name a concept, got an empty text")
        tags.append(TARGET_TAG + slug(target))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    api = HfApi(token=token, library_name=LIBRARY)
    fields: Any = ["tags", "downloads", "likes", "lastModified", "private"]
    with translated_errors(" ".join(tags), "list"):
        models = api.list_models(filter=tags, sort="downloads", limit=limit, expand=fields)
        return [_found_adapter(model) for model in models]


def _found_adapter(model: Any) -> FoundAdapter:
    tags = [tag for tag in model.tags or [] if isinstance(tag, str)]
    # Beside the name itself the Hub adds tags such as "base_model:adapter:org/name".
    bases = [tag.removeprefix(BASE_TAG) for tag in tags if tag.startswith(BASE_TAG)]
    return FoundAdapter(
        repo_id=model.id,
        base_model=next((name for name in bases if ":" not in name), None),
        targets=tuple(t.removeprefix(TARGET_TAG) for t in tags if t.startswith(TARGET_TAG)),
        downloads=model.downloads or 0,
        likes=model.likes or 0,
        last_modified=model.last_modified,
        private=bool(model.private),
    )
