"""What the Hub's client raises, in one line that names the fix."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors

Transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
"""Any failure of HTTP; which library it comes from depends on the client's version."""

LOG_IN = "run `hf auth login`, or pass a token"


class HubError(RuntimeError):
    """The Hub could not do what was asked of it; the message is one line that names the fix.

    Example:
        >>> try:
        ...     pull("someone/no-such-adapter")
        ... except HubError as error:
        ...     print(error)  # doctest: +SKIP
        cannot pull 'someone/no-such-adapter': there is no such repository, ...
    """


class Unreachable(HubError):
    """There is no way to the Hub: no network, offline mode, or it does not answer."""


@contextmanager
def translated_errors(repo_id: str, action: str) -> Iterator[None]:
    """Raise what the client raises on a "push", "pull" or "list" as a `HubError` of one line."""
    try:
        yield
    except (OSError, RuntimeError, Transport) as error:  # httpx's failures are no OSError
        cause = _telling_cause(error)
        if cause is None:
            raise
        answered = isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code < 500
        local = isinstance(cause, errors.LocalTokenNotFoundError)
        kind = HubError if answered or local else Unreachable
        raise kind(f"cannot {action} {repo_id!r}: {_reason(cause, action)}") from error


def _telling_cause(error: Exception) -> BaseException | None:
    """The exception that says most: uploads wrap it, downloads raise another from it."""
    telling = (Transport, errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, telling) and not isinstance(cause, errors.LocalEntryNotFoundError):
            return cause
        cause = cause.__cause__
    return error if isinstance(error, errors.LocalEntryNotFoundError) else None


def _reason(cause: BaseException, action: str) -> str:
    """What went wrong, and what helps."""
    retry = "try again" + (": what was uploaded is not uploaded twice" * (action == "push"))
    if isinstance(cause, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it and start again"
    if isinstance(cause, errors.LocalTokenNotFoundError):
        return f"you are not logged in: {LOG_IN}"
    if isinstance(cause, errors.HfHubHTTPError):
        return _meaning(cause, action, retry)
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return f"no connection to {constants.ENDPOINT} ({reason}): check the network and {retry}"


def _meaning(error: errors.HfHubHTTPError, action: str, retry: str) -> str:
    """What an error that the Hub answered means."""
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated: ask for access on its page, and {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision: name a branch, a tag or a commit"
    if isinstance(error, errors.EntryNotFoundError):
        return "a file is missing there: its listing and its files disagree"
    if isinstance(error, errors.RepositoryNotFoundError) and action != "push":
        return f"there is no such repository, or it is private: check the name, and {LOG_IN}"
    status = error.response.status_code
    if status >= 500:
        return f"the Hub failed (HTTP {status}): {retry}"
    answer = " ".join((error.server_message or str(error)).split())
    return {
        401: f"you are not logged in, or the token is not valid: {LOG_IN}",
        403: "the token may not do that: take one with write access to this name, or another name",
        404: "there is no such repository: check the name, and that the token may see it",
        409: f"something else is changing it: {retry}",
        429: f"too many requests: wait, then {retry}",
    }.get(status, f"the Hub answered HTTP {status}: {answer}")
