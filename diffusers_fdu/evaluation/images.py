"""Pictures of an evaluation on disk: drawn in batches, by several processes, and gone on with.

A folder holds the pictures and `manifest.json`: of each its prompt, seed and SHA-256, and what
they all depend on: the model, its adapters, and the arguments of the runs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import nn

from ..pipelines.generate import BATCH, check_pictures, generate, takes_argument
from ..training.identity import pipe_facts
from ..utils.distributed import Processes
from ..utils.io import as_json, read_json, writable_folder, write_json
from .request import Request

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ImageSet:
    """Pictures and what was asked for.

    Args:
        requests: what was asked.
        images: as many pictures.
        folder: where they are; None: nowhere.
    """

    requests: Sequence[Request]
    images: Sequence[Image.Image]
    folder: Path | None = None

    def of(self, part: str) -> ImageSet:
        """The pictures of one part."""
        pairs = zip(self.requests, self.images, strict=True)
        chosen = [(request, image) for request, image in pairs if request.part == part]
        return ImageSet([r for r, _ in chosen], [i for _, i in chosen], self.folder)


def draw(
    pipe: Any,
    requests: Sequence[Request],
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    batch: int = BATCH,
    processes: Processes | None = None,
    progress: str | None = None,
) -> ImageSet:
    """Draw what is asked for, with the pipe as it is.

    Args:
        pipe: a diffusers pipeline that gives pictures; left as it was.
        requests: one a picture.
        settings: arguments of the runs, such as num_inference_steps; those that the pipeline does
            not take are left out.
        folder: keeps the pictures, so that an interrupted run goes on; None: nowhere.
        batch: pictures drawn at once. Those of one batch differ by rounding from those of another.
        processes: share the work; every one gets all pictures, if there is a folder.
        progress: title of a progress bar; None: no bar.

    Raises:
        ValueError: if the pipeline gives no pictures, the folder holds those of another model or
            other settings, or several processes have no folder.
    """
    check_pictures(pipe)
    processes = processes or Processes()
    settings = accepted(pipe, settings or {})

    def drawn(part: Sequence[Request], title: str | None, on_images: Any = None) -> list[Any]:
        prompts, seeds = [r.prompt for r in part], [r.seed for r in part]
        options = {"batch": batch, "progress": title, "on_images": on_images}
        return generate(pipe, prompts, seeds, **options, **settings)

    if folder is None:
        if processes.count > 1:
            raise ValueError("several processes need a folder for their pictures")
        return ImageSet(requests, drawn(requests, progress))
    place = writable_folder(folder)
    about = {"settings": settings, **pipe_facts(pipe), "strengths": adapter_state(pipe)}
    store = _Store(place, as_json(about))
    missing = [i for i, request in enumerate(requests) if not store.has(i, request)]
    processes.wait()  # before anyone writes
    own = processes.own(missing)
    coming = iter(own)

    def keep(images: Sequence[Image.Image]) -> None:
        for image in images:
            index = next(coming)
            store.keep(index, requests[index], image)
        store.write_part()

    drawn([requests[i] for i in own], progress if processes.is_main else None, keep)
    for rows in processes.gather([store.rows]):
        store.rows.update(rows)
    if processes.is_main:
        store.write(len(requests))
    processes.wait()
    return ImageSet(requests, [store.image(i) for i in range(len(requests))], place)


def load_image_set(folder: str | Path) -> ImageSet:
    """Pictures that `draw` kept.

    Raises:
        ValueError: if they are not there, or not as they were.
    """
    place = Path(folder)
    if not (place / MANIFEST).is_file():
        raise ValueError(
            f"{str(folder)!r} holds no pictures of an evaluation, or not all of them yet"
        )
    store = _Store(place, None)
    requests, images = [], []
    for index in sorted(store.rows):
        row = store.rows[index]
        request = Request(row["prompt"], row["seed"], row["part"], row["expected"])
        if not store.has(index, request):
            raise ValueError(f"{str(place / row['file'])!r} is missing, or was changed")
        requests.append(request)
        images.append(store.image(index))
    return ImageSet(requests, images, place)


def adapter_state(pipe: Any) -> str:
    """What tells which adapters count, and how much, in every layer of the pipe: a digest."""
    digest = hashlib.sha256()
    for name, part in sorted(getattr(pipe, "components", {}).items()):
        if isinstance(part, nn.Module):
            for place, layer in part.named_modules():
                if isinstance(layer, BaseTunerLayer):
                    scaling = sorted(getattr(layer, "scaling", {}).items())
                    state = layer.disable_adapters, sorted(layer.active_adapters), scaling
                    digest.update(f"{name}.{place}:{state}".encode())
    return digest.hexdigest()


def accepted(pipe: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the pipeline takes and that say something."""
    return {k: v for k, v in settings.items() if takes_argument(pipe, k) and v is not None}


class _Store:
    """The files of a folder.

    Args:
        folder: an existing one.
        about: what its pictures depend on; None: whatever it was.

    Raises:
        ValueError: if it holds pictures that depend on something else.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None) -> None:
        self.folder, self.about = folder, about
        self.rows: dict[int, dict[str, Any]] = {}
        self._part = folder / f"{os.getpid()}.part.json"
        for path in sorted(folder.glob("*.json")):
            content = _read(path)
            if about is not None and content["about"] != about:
                raise ValueError(
                    f"{str(folder)!r} holds pictures of another model, or drawn with other "
                    "settings: use another folder, or remove it"
                )
            self.about = content["about"]
            self.rows.update({int(i): row for i, row in content["pictures"].items()})

    def has(self, index: int, request: Request) -> bool:
        """Whether a picture is there, as it was drawn."""
        row = self.rows.get(index)
        asked = {**asdict(request), "expected": dict(request.expected)}
        if row is None or any(row[key] != value for key, value in asked.items()):
            return False
        path = self.folder / f"{index:05}.png"
        return path.is_file() and _digest(path) == row["sha256"]

    def image(self, index: int) -> Image.Image:
        """A picture."""
        with Image.open(self.folder / f"{index:05}.png", formats=["PNG"]) as image:
            return image.convert("RGB")

    def keep(self, index: int, request: Request, image: Image.Image) -> None:
        """Write a picture."""
        path = self.folder / f"{index:05}.png"
        image.save(path)
        asked = {**asdict(request), "expected": dict(request.expected)}
        self.rows[index] = {"file": path.name, **asked, "sha256": _digest(path)}

    def write_part(self) -> None:
        """Say what is there so far."""
        self._write(self._part, self.rows)

    def write(self, count: int) -> None:
        """Say what is there when all are done, in one file."""
        self._write(self.folder / MANIFEST, {i: self.rows[i] for i in range(count)})
        for path in self.folder.glob("*.part.json"):
            path.unlink()

    def _write(self, path: Path, rows: Mapping[int, dict[str, Any]]) -> None:
        write_json(path, {"about": self.about, "pictures": rows})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        return {"about": content["about"], "pictures": dict(content["pictures"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no manifest of pictures: {error}") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
