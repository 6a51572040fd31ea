"""What of a folder goes to the Hub and comes from it: these files, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .adapter_file import PEFT_CONFIG_NAME, PEFT_WEIGHTS_NAME, WEIGHTS_NAME, AdapterFile
from .evaluation_file import EVALUATION_NAME
from .read import PICKLES
from .recipe import RECIPE_NAME

EMBEDDED = "diffusers_fdu/emoji"
"""What the embedded model is called, which is not on the Hub."""
CARD_NAME = "README.md"
SHEET_NAME = "before_after.png"
PICTURES = "images"
PICTURE = re.compile(rf"{PICTURES}/\w[\w.-]{{0,99}}\.png", re.ASCII)
REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

OWN_WEIGHTS = {"diffusers": (WEIGHTS_NAME,), "peft": (PEFT_CONFIG_NAME, PEFT_WEIGHTS_NAME)}
EXACT = (
    CARD_NAME,
    RECIPE_NAME,
    EVALUATION_NAME,
    SHEET_NAME,
    *(name for names in OWN_WEIGHTS.values() for name in names),
)

MAX_WEIGHTS = 4 * 2**30
"""Bytes; a LoRA of rank 128 on the largest models has about half."""
MAX_OTHER = 64 * 2**20
MAX_PICTURES = 64
PNG = b"\x89PNG\r\n\x1a\n"


def is_ours(name: str) -> bool:
    """Whether a file of this name in a repository is one that `push` writes."""
    return name in EXACT or PICTURE.fullmatch(name) is not None


def is_weights(name: str) -> bool:
    """Whether it is a file of weights."""
    return name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME)


def check_repo_id(repo_id: str) -> str:
    """A repository's name.

    Raises:
        ValueError: if it is not `user/name`.
    """
    if not isinstance(repo_id, str) or not is_repo_id(repo_id):
        raise ValueError(
            f"{repo_id!r} is no name of a repository: write user/name, of letters, digits, '-', "
            "'_' and '.'"
        )
    return repo_id


def is_repo_id(name: str) -> bool:
    """Whether this could name a repository of the Hub; `user/name` in its words."""
    if not REPO_ID.fullmatch(name) or len(name) > 96:
        return False
    return not any(odd in name for odd in ("..", "--")) and not name.endswith((".git", ".", "-"))


def weights_path(found: AdapterFile) -> Path:
    """The file of an adapter's weights."""
    return found.folder / OWN_WEIGHTS[found.format][-1]


def contents(found: AdapterFile) -> dict[str, Path]:
    """The files of an adapter's folder that go to the Hub, by their names there.

    Raises:
        ValueError: if one leads out of the folder, is too large or no picture.
    """
    folder = found.folder
    names = [*OWN_WEIGHTS[found.format], RECIPE_NAME, EVALUATION_NAME, SHEET_NAME]
    names += sorted(f"{PICTURES}/{path.name}" for path in (folder / PICTURES).glob("*.png"))
    taken = {name: folder / name for name in names if (folder / name).is_file()}
    for name, path in list(taken.items()):
        # The Hub's cache links to its own blobs; that is where a pulled adapter may be.
        root = folder.parent.parent if folder.parent.name == "snapshots" else folder
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{str(path)!r} is a link that leaves the folder: not pushed")
        if not name.endswith(".png"):
            continue
        if not is_ours(name):
            raise ValueError(
                f"{str(path)!r}: name pictures with letters, digits, '-', '_' and '.' alone"
            )
        with path.open("rb") as file:
            if file.read(len(PNG)) != PNG or path.stat().st_size > MAX_OTHER:
                raise ValueError(f"{str(path)!r} is no PNG of at most {MAX_OTHER} bytes")
    if sum(map(bool, map(PICTURE.fullmatch, taken))) > MAX_PICTURES:
        raise ValueError(f"{str(folder / PICTURES)!r} has more than {MAX_PICTURES} pictures")
    return taken


def chosen(sizes: dict[str, int | None], max_bytes: int) -> list[str]:
    """The files of a repository to download, weights last.

    Args:
        sizes: of all its files, in bytes.
        max_bytes: of the weights.

    Raises:
        ValueError: with the reason, if a name leaves the folder, the adapter is missing or a
            pickle, or a file is too large.
    """
    for name in sizes:
        if name.startswith(("/", "~")) or "\\" in name or ":" in name or _climbs(name):
            raise ValueError(f"its file {name!r} leaves the folder")
    if not any(all(name in sizes for name in names) for names in OWN_WEIGHTS.values()):
        raise ValueError(_nothing_there(sizes))
    taken = [name for name in sizes if is_ours(name)]
    if sum(map(bool, map(PICTURE.fullmatch, taken))) > MAX_PICTURES:
        raise ValueError(f"it has more than {MAX_PICTURES} pictures")
    for name in taken:
        size, most = sizes[name], max_bytes if is_weights(name) else MAX_OTHER
        if size is None or size > most:
            raise ValueError(
                f"{name} has {'an unknown number of' if size is None else size} bytes, more than "
                f"{most}" + (": pass max_bytes to allow more" if is_weights(name) else "")
            )
    return sorted(taken, key=lambda name: (is_weights(name), name))


def _climbs(name: str) -> bool:
    return any(part in ("", ".", "..") for part in name.split("/"))


def _nothing_there(names: Iterable[str]) -> str:
    pickles = sorted(name for name in names if Path(name).suffix.lower() in PICKLES)
    if pickles:
        return (
            f"it holds {pickles[0]!r}, a pickle, which could run any code, and no weights in "
            "safetensors"
        )
    return f"it holds neither {WEIGHTS_NAME} nor {PEFT_CONFIG_NAME} with {PEFT_WEIGHTS_NAME}"
