"""Adapters from the Hub: their files and no others, and only if they can be trusted."""

import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ..utils.hub_errors import HubError, Unreachable, translated_errors
from ..utils.io import writable_folder
from . import hub_files
from .adapter_file import PEFT_WEIGHTS_NAME, WEIGHTS_NAME
from .read import read_adapter

LIBRARY = "diffusers-fdu"
Source = str | Path
"""Where an adapter is: a folder, or `user/name` on the Hub."""


def pull(
    repo_id: str,
    output_dir: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    max_bytes: int = hub_files.MAX_WEIGHTS,
) -> Path:
    """Download an adapter from the Hub, check it, and return the folder with its files.

    Only safetensors, JSON, pictures and the card are taken. Where the Hub cannot be reached, what
    was pulled before is taken from its cache.

    Args:
        repo_id: the repository, `user/name`.
        output_dir: a new or empty folder for the files, or one with an adapter, which they
            replace; by default the Hub's cache.
        revision: a branch, tag or commit; by default the newest commit.
        token: the token for private repositories; by default that of whoever is logged in.
        max_bytes: the largest size of the weights that is accepted.

    Raises:
        ValueError: if the repository holds a pickle in place of safetensors, files that leave
            the folder or are too large, or no adapter to be trusted. No file is written then.
        HubError: with the fix, if the Hub or the network fails.

    Example:
        >>> folder = pull("me/no-snoopy", "runs/no-snoopy")  # doctest: +SKIP
        >>> pipe = load_unlearned(pipe, folder)  # doctest: +SKIP
    """
    hub_files.check_repo_id(repo_id)
    if output_dir is not None and Path(output_dir).exists():
        _check_output(Path(output_dir))
    folder: Path | None = None
    try:
        folder = _download(repo_id, revision, token, max_bytes)
    except Unreachable:
        with suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
        if folder is None or not holds_weights(folder):
            raise
    files = hub_files.files_to_push(read_adapter(folder))
    return folder if output_dir is None else _copy(files, Path(output_dir))


def local_folder(source: Source) -> Source:
    """The source if it is a folder, or cannot be on the Hub; else the folder it is pulled to.

    Raises:
        ValueError: see `pull`.
        HubError: see `pull`.
    """
    if isinstance(source, Path) or Path(source).exists() or not hub_files.is_repo_id(source):
        return source
    try:
        return pull(source)
    except HubError as error:
        raise type(error)(f"there is no folder {source!r}, and {error}") from error


def _download(repo_id: str, revision: str | None, token: str | None, max_bytes: int) -> Path:
    """The folder in the Hub's cache that then has the files which are taken."""
    api = HfApi(token=token, library_name=LIBRARY)
    with translated_errors(repo_id, "pull"):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        try:
            names = hub_files.files_to_pull(sizes, max_bytes)
        except ValueError as error:
            raise ValueError(f"{repo_id!r} is not pulled: {error}") from error
        path = api.snapshot_download(repo_id, revision=revision, allow_patterns=names)
    folder = Path(path)
    if folder.name != info.sha:
        raise HubError(f"{repo_id!r} changed while it was pulled: try again")
    return folder


def holds_weights(folder: Path) -> bool:
    """Whether a folder has weights, of either format."""
    return any((folder / name).exists() for name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME))


def _check_output(folder: Path) -> None:
    """Refuse what is no folder or holds something else, before anything is downloaded."""
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: pass a folder")
    if any(folder.iterdir()) and not holds_weights(folder):
        raise ValueError(f"{str(folder)!r} holds other files and no adapter: pass an empty folder")
    writable_folder(folder)


def _copy(files: dict[str, Path], output: Path) -> Path:
    """Put all files into a folder in place of the adapter there, or none of them."""
    undo = ExitStack()
    if not output.exists():
        undo.callback(shutil.rmtree, output, ignore_errors=True)
    writable_folder(output)
    with undo, tempfile.TemporaryDirectory(dir=output) as temporary:
        for name, path in files.items():
            (Path(temporary) / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, Path(temporary) / name)
        # What was pushed with the adapter that was here would be pushed with the new one.
        stale = [output / name for name in hub_files.FIXED_NAMES]
        if not (output / hub_files.PICTURES).is_symlink():  # those elsewhere are not pushed
            stale += (output / hub_files.PICTURES).glob("*.png")
        for path in stale:
            path.unlink(missing_ok=True)
        for name in files:
            (output / name).parent.mkdir(exist_ok=True)
            (Path(temporary) / name).replace(output / name)
        undo.pop_all()
    return output
