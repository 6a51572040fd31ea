"""Which files of an adapter's folder go to the Hub and come from it: these, and no others."""

import re
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .adapter_file import FILE_NAMES, PEFT_WEIGHTS_NAME, WEIGHTS_NAME, AdapterFile
from .evaluation_file import EVALUATION_NAME
from .read import check_inside, without_weights
from .recipe import RECIPE_NAME

CARD_NAME = "README.md"
SHEET_NAME = "before_after.png"
PICTURES = "images"
PICTURE = re.compile(rf"{PICTURES}/\w[\w.-]{{0,99}}\.png", re.ASCII)

BESIDE_WEIGHTS = (RECIPE_NAME, EVALUATION_NAME, CARD_NAME, SHEET_NAME)
FIXED_NAMES = (*BESIDE_WEIGHTS, *FILE_NAMES["diffusers"], *FILE_NAMES["peft"])

MAX_WEIGHTS = 4 * 2**30  # bytes; a LoRA of rank 128 on the largest models has about half
MAX_OTHER = 64 * 2**20
MAX_PICTURES = 64
PNG = b"\x89PNG\r\n\x1a\n"


def is_pushed(name: str) -> bool:
    """Whether a file of this name in a repository is one that `push` writes."""
    return name in FIXED_NAMES or PICTURE.fullmatch(name) is not None


def is_repo_id(name: str) -> bool:
    """Whether this could name a repository of the Hub, `user/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def is_model_id(name: Any) -> TypeGuard[str]:
    """Whether a base model's name is one of the Hub's, and not a folder's."""
    return isinstance(name, str) and is_repo_id(name) and not Path(name).is_dir()


def check_repo_id(repo_id: str) -> str:
    """The name of a repository, if it is one."""
    if not is_repo_id(repo_id):
        raise ValueError(f"{repo_id!r} is no name of a repository: write user/name")
    return repo_id


def files_to_push(adapter_file: AdapterFile) -> dict[str, Path]:
    """The files of an adapter's folder that go to the Hub, by their names there."""
    folder = adapter_file.folder
    names = [*FILE_NAMES[adapter_file.format], *BESIDE_WEIGHTS]
    names += sorted(f"{PICTURES}/{path.name}" for path in (folder / PICTURES).glob("*.png"))
    files = {name: folder / name for name in names if (folder / name).is_file()}
    for name, path in files.items():
        if name != CARD_NAME:  # which is made anew when it is pushed
            check_inside(path, folder)
        if not name.endswith(".png"):
            continue
        if not is_pushed(name):
            raise ValueError(f"{str(path)!r} may have letters, digits, '-', '_' and '.' alone")
        with path.open("rb") as file:
            if file.read(len(PNG)) != PNG or path.stat().st_size > MAX_OTHER:
                raise ValueError(f"{str(path)!r} is no PNG of at most {MAX_OTHER} bytes")
    if len([name for name in files if PICTURE.fullmatch(name)]) > MAX_PICTURES:
        raise ValueError(f"{str(folder / PICTURES)!r} has more than {MAX_PICTURES} pictures")
    return files


def files_to_pull(sizes: dict[str, int | None], max_bytes: int) -> list[str]:
    """The files to download from a repository, by the sizes in bytes of all of its files.

    Raises:
        ValueError: with the reason, if a name leaves the folder, the adapter is missing or a
            pickle, or a file is too large: `max_bytes` for weights, `MAX_OTHER` for others.
    """
    for name in sizes:
        climbs = any(part in ("", ".", "..") for part in name.split("/"))
        if climbs or name.startswith("~") or "\\" in name or ":" in name:
            raise ValueError(f"its file {name!r} leaves the folder")
    if not any(all(name in sizes for name in names) for names in FILE_NAMES.values()):
        raise ValueError(f"it {without_weights(sizes)}")
    names = [name for name in sizes if is_pushed(name)]
    if len([name for name in names if PICTURE.fullmatch(name)]) > MAX_PICTURES:
        raise ValueError(f"it has more than {MAX_PICTURES} pictures")
    for name in names:
        is_weights = name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME)
        size, most = sizes[name], max_bytes if is_weights else MAX_OTHER
        if size is None or size > most:
            raise ValueError(
                f"{name} has {'an unknown number of' if size is None else size} bytes, more than "
                f"{most}" + (": pass max_bytes to allow more" if is_weights else "")
            )
    return names
