"""Adapters on the Hub, by what they are for and what they forget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from huggingface_hub import HfApi

from ..adapters.contents import check_repo_id
from ..adapters.download import LIBRARY
from ..utils.hub_errors import translated_errors
from ..utils.markup import slug
from .card import OWN_TAG, TARGET_TAG

BASE_TAG = "base_model:"


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter on the Hub.

    Args:
        repo_id: its name there; `load_unlearned(pipe, repo_id)` loads it.
        base_model: what it is for; None: that is not on the Hub.
        targets: what it forgets, as in its tags: "mickey-mouse".
        downloads: in the last 30 days.
        likes: of users.
        last_modified: when it was pushed last.
        private: whether others see it.
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
    """Adapters that were pushed to the Hub, by their tags; most downloaded first.

    Args:
        base_model: `org/name`; None: any.
        target: what is forgotten, as the adapter's recipe names it, in upper or lower case;
            None: anything.
        token: to find private ones, too; None: of whoever is logged in.
        limit: how many; None: all.

    Raises:
        ValueError: for a bad name or limit.
        HubError: with the fix, if the Hub or the network fails.
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
    wanted: Any = ["tags", "downloads", "likes", "lastModified", "private"]
    with translated_errors(" ".join(tags), "list"):
        found = api.list_models(filter=tags, sort="downloads", limit=limit, expand=wanted)
        return [_found(info) for info in found]


def _found(info: Any) -> FoundAdapter:
    tags = [tag for tag in info.tags or [] if isinstance(tag, str)]
    # Beside the name itself the Hub adds tags such as "base_model:adapter:org/name".
    bases = [tag.removeprefix(BASE_TAG) for tag in tags if tag.startswith(BASE_TAG)]
    return FoundAdapter(
        repo_id=info.id,
        base_model=next((name for name in bases if ":" not in name), None),
        targets=tuple(t.removeprefix(TARGET_TAG) for t in tags if t.startswith(TARGET_TAG)),
        downloads=info.downloads or 0,
        likes=info.likes or 0,
        last_modified=info.last_modified,
        private=bool(info.private),
    )
