"""From the Hub: the files of an adapter and no others, and only if they can be trusted."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ..utils.hub_errors import HubError, Unreachable, translated_errors
from ..utils.io import writable_folder
from .contents import (
    EXACT,
    MAX_WEIGHTS,
    OWN_WEIGHTS,
    PICTURES,
    check_repo_id,
    chosen,
    contents,
    is_repo_id,
)
from .read import read_adapter

LIBRARY = "diffusers-fdu"


def pull(
    repo_id: str,
    output_dir: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    max_bytes: int = MAX_WEIGHTS,
) -> Path:
    """Take an adapter from the Hub, and check it as `read_adapter` does.

    Without a way to the Hub, what was pulled before is taken from its cache.

    Args:
        repo_id: `user/name`.
        output_dir: gets the files: a new or empty folder, or one that holds an adapter, which
            they replace; None: they stay in the Hub's cache.
        revision: a branch, tag or commit; None: the newest.
        token: for private repositories; None: of whoever is logged in.
        max_bytes: larger weights are refused.

    Returns:
        The folder.

    Raises:
        ValueError: if the repository holds a pickle in place of safetensors, files that leave
            the folder or are too large, or no adapter to be trusted; nothing is in output_dir
            then.
        HubError: with the fix, if the Hub or the network fails.
    """
    check_repo_id(repo_id)
    target = None if output_dir is None else _checked_folder(Path(output_dir))
    try:
        folder = _downloaded(repo_id, revision, token, max_bytes)
    except Unreachable:
        kept = _kept(repo_id, revision)
        if kept is None:
            raise
        folder = kept
    found = read_adapter(folder)
    files = contents(found)
    card = folder / EXACT[0]
    if card.is_file():
        files[card.name] = card
    return folder if target is None else _copied(files, target)


def local_folder(source: str | Path) -> str | Path:
    """The source if it is a folder, or cannot be on the Hub; else what is pulled from there.

    Args:
        source: a folder, or `user/name`.

    Raises:
        ValueError: see `pull`.
        HubError: see `pull`.
    """
    if isinstance(source, Path) or Path(source).exists() or not is_repo_id(source):
        return source
    try:
        return pull(source)
    except HubError as error:
        raise type(error)(f"there is no folder {source!r}, and {error}") from error


def _downloaded(repo_id: str, revision: str | None, token: str | None, max_bytes: int) -> Path:
    """The Hub's cache's folder with the files that are taken."""
    with translated_errors(repo_id, "pull"):
        info = HfApi(token=token, library_name=LIBRARY).model_info(
            repo_id, revision=revision, files_metadata=True
        )
        try:
            names = chosen({f.rfilename: f.size for f in info.siblings or []}, max_bytes)
        except ValueError as error:
            raise ValueError(f"{repo_id!r} is not pulled: {error}") from error
        folder = Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=names, token=token, library_name=LIBRARY
            )
        )
    if folder.name != info.sha:
        raise HubError(f"{repo_id!r} changed while it was pulled: try again")
    return folder


def _kept(repo_id: str, revision: str | None) -> Path | None:
    """The Hub's cache's folder, if the adapter is in it."""
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _holds_adapter(folder) else None


def _holds_adapter(folder: Path) -> bool:
    return any((folder / names[-1]).exists() for names in OWN_WEIGHTS.values())


def _checked_folder(folder: Path) -> Path:
    """Refuse a folder whose files are something else, before anything is downloaded.

    Raises:
        ValueError: if it is not empty and holds no adapter, or cannot be written.
    """
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: pass a folder")
    if any(folder.iterdir()) and not _holds_adapter(folder):
        raise ValueError(
            f"{str(folder)!r} holds other files and no adapter: pass a new or empty folder"
        )
    return writable_folder(folder)


def _remove_adapter(folder: Path) -> None:
    """Take away what was pushed with the adapter here, or would be with the next."""
    for name in EXACT:
        (folder / name).unlink(missing_ok=True)
    pictures = folder / PICTURES
    if not pictures.is_symlink():  # those of another place are not pushed
        for path in pictures.glob("*.png"):
            path.unlink()


def _copied(files: dict[str, Path], target: Path) -> Path:
    """Put all files into a folder, or none: they are copied beside it first."""
    is_new = not target.exists()
    writable_folder(target)
    try:
        with tempfile.TemporaryDirectory(dir=target) as temporary:
            for name, path in files.items():
                (Path(temporary) / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, Path(temporary) / name)
            _remove_adapter(target)
            for name in files:
                (target / name).parent.mkdir(exist_ok=True)
                (Path(temporary) / name).replace(target / name)
    except BaseException:
        if is_new:
            shutil.rmtree(target, ignore_errors=True)
        raise
    return target
