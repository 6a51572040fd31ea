"""What the Hub's client raises, in one line that names the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

Transport: type[Exception] = HfHubHTTPError.__bases__[0]
"""Any failure of HTTP; which library it comes from depends on the client's version."""

LOG_IN = "run `hf auth login`, or pass a token"
AGAIN = "try again: what was uploaded is not uploaded twice"


class HubError(RuntimeError):
    """The Hub could not do what was asked of it."""


class Unreachable(HubError):
    """There is no way to the Hub: no network, offline mode, or it does not answer."""


@contextmanager
def explained(repo_id: str, doing: str) -> Iterator[None]:
    """Raise what the client raises as a `HubError` of one line.

    Args:
        repo_id: the repository.
        doing: "push", "pull" or "list".

    Raises:
        HubError: with the fix.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        kind = Unreachable if _is_unreachable(cause) else HubError
        raise kind(f"cannot {doing} {repo_id!r}: {_reason(cause, doing)}") from error
    except Transport as error:  # of httpx, which is no OSError
        raise Unreachable(f"cannot {doing} {repo_id!r}: {_reason(error, doing)}") from error


def _cause(error: BaseException) -> BaseException | None:
    """The one that says most: uploads wrap it, downloads raise another from it."""
    known = (HfHubHTTPError, Transport, LocalTokenNotFoundError, OfflineModeIsEnabled)
    own: BaseException | None = error
    while own is not None:
        if isinstance(own, known) and not isinstance(own, LocalEntryNotFoundError):
            return own
        own = own.__cause__
    return error if isinstance(error, LocalEntryNotFoundError) else None


def _is_unreachable(cause: BaseException) -> bool:
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500
    return not isinstance(cause, LocalTokenNotFoundError)


def _reason(cause: BaseException, doing: str) -> str:
    """What went wrong, and what helps."""
    retry = AGAIN if doing == "push" else "try again"
    if isinstance(cause, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it and start again"
    if isinstance(cause, LocalTokenNotFoundError):
        return f"you are not logged in: {LOG_IN}"
    if isinstance(cause, HfHubHTTPError):
        return _answer(cause, doing, retry)
    said = " ".join(str(cause).split()) or type(cause).__name__
    return f"no connection to {constants.ENDPOINT} ({said}): check the network and {retry}"


def _answer(error: HfHubHTTPError, doing: str, retry: str) -> str:
    """What the Hub's own answer means."""
    status = error.response.status_code
    unseen = "there is no such repository, or it is private: check the name; if private, "
    for kind, meaning in (
        (GatedRepoError, f"it is gated: ask for access on its page, and {LOG_IN}"),
        (RevisionNotFoundError, "it has no such revision: name a branch, a tag or a commit"),
        (EntryNotFoundError, "a file is missing there: its listing and its files disagree"),
        (RepositoryNotFoundError, unseen + LOG_IN if doing != "push" else None),
    ):
        if isinstance(error, kind) and meaning is not None:
            return meaning
    if status >= 500:
        return f"the Hub failed (HTTP {status}): {retry}"
    said = " ".join((error.server_message or str(error)).split())
    return {
        401: f"you are not logged in, or the token is not valid: {LOG_IN}",
        403: "the token may not do that: take one with write access to this name, or another name",
        404: "there is no such repository: check the name, and that the token may see it",
        409: f"something else is changing it: {retry}",
        429: f"too many requests: wait, then {retry}",
    }.get(status, f"the Hub answered HTTP {status}: {said}")
