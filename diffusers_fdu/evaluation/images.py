"""The pictures of an evaluation: drawn in batches, shared by processes, and kept in a folder.

A folder holds the pictures and `manifest.json`, with the prompt, the seed and the SHA-256 of each
picture, and with what all of them depend on: the model, its adapters, the arguments of the runs.
Until all are drawn, each process keeps a manifest of its own part, so that an interrupted run goes
on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import nn

from ..adapters.evaluation_file import sha256
from ..pipelines.generate import BATCH, check_pictures, generate, takes_argument
from ..training.identity import pipe_facts
from ..utils.distributed import Processes
from ..utils.io import as_json, read_json, writable_folder, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Request:
    """A picture to be drawn from the noise of a seed.

    It belongs to a part of the protocol: "target", "synonyms", "retain", ... The judge is expected
    to answer such as {"object": "dog", "style": "noto"}.
    """

    prompt: str
    seed: int
    part: str
    expected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSet:
    """Requests, and the picture drawn for each."""

    requests: Sequence[Request]
    images: Sequence[Image.Image]

    def of(self, part: str) -> ImageSet:
        """The pictures of one part of the protocol."""
        pairs = zip(self.requests, self.images, strict=True)
        selected = [(request, image) for request, image in pairs if request.part == part]
        return ImageSet([r for r, _ in selected], [i for _, i in selected])


def draw(
    pipe: Any,
    requests: Sequence[Request],
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    batch: int = BATCH,
    processes: Processes | None = None,
    progress: str | None = None,
) -> ImageSet:
    """Draw the requested pictures with the pipe as it is.

    Settings that the pipeline does not take are left out. A folder keeps the pictures, so that an
    interrupted run goes on, and lets several processes share the work; each gets all pictures in
    the end. Batches of other sizes give pictures that differ by rounding. `progress` is the title
    of a progress bar; by default there is none.

    ValueError if the pipeline gives no pictures, the folder holds those of another model or other
    settings, or several processes have no folder.
    """
    check_pictures(pipe)
    processes = processes or Processes()
    settings = accepted_settings(pipe, settings or {})

    def drawn(rows: Sequence[Request], title: str | None, on_images: Any = None) -> list[Any]:
        prompts, seeds = [r.prompt for r in rows], [r.seed for r in rows]
        options = {"batch": batch, "progress": title, "on_images": on_images}
        return generate(pipe, prompts, seeds, **options, **settings)

    if folder is None:
        if processes.count > 1:
            raise ValueError("several processes need a folder for their pictures")
        return ImageSet(requests, drawn(requests, progress))
    about = {"settings": settings, **pipe_facts(pipe), "strengths": adapter_digest(pipe)}
    store = _ImageStore(writable_folder(folder), as_json(about))
    missing = [i for i, request in enumerate(requests) if not store.has(i, request)]
    processes.wait()  # no process writes before all have seen what is missing
    own_indices = processes.share(missing)
    next_index = iter(own_indices)

    def keep(images: Sequence[Image.Image]) -> None:
        for image in images:
            index = next(next_index)
            store.keep(index, requests[index], image)
        store.write_manifest(f"{os.getpid()}.part.json", store.rows)

    drawn([requests[i] for i in own_indices], progress if processes.is_main else None, keep)
    for rows in processes.gather([store.rows]):
        store.rows.update(rows)
    if processes.is_main:
        store.write_manifest(MANIFEST, {i: store.rows[i] for i in range(len(requests))})
        for path in store.folder.glob("*.part.json"):
            path.unlink()
    processes.wait()
    return ImageSet(requests, [store.image(i) for i in range(len(requests))])


def load_image_set(folder: str | Path) -> ImageSet:
    """The pictures that `draw` kept; ValueError if one is missing or was changed."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{str(folder)!r} holds no pictures of an evaluation, or not all of them yet"
        )
    store = _ImageStore(folder)
    requests = []
    for index, row in sorted(store.rows.items()):
        requests.append(Request(row["prompt"], row["seed"], row["part"], row["expected"]))
        if not store.has(index, requests[-1]):
            raise ValueError(f"{str(folder / row['file'])!r} is missing, or was changed")
    return ImageSet(requests, [store.image(index) for index in sorted(store.rows)])


def adapter_digest(pipe: Any) -> str:
    """A digest of which adapters count, and how much, in every layer of the pipe."""
    digest = hashlib.sha256()
    for name, part in sorted(getattr(pipe, "components", {}).items()):
        if isinstance(part, nn.Module):
            for layer_name, layer in part.named_modules():
                if isinstance(layer, BaseTunerLayer):
                    scaling = sorted(getattr(layer, "scaling", {}).items())
                    state = layer.disable_adapters, sorted(layer.active_adapters), scaling
                    digest.update(f"{name}.{layer_name}:{state}".encode())
    return digest.hexdigest()


def accepted_settings(pipe: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None and that the pipeline takes."""
    return {k: v for k, v in settings.items() if takes_argument(pipe, k) and v is not None}


class _ImageStore:
    """The pictures of a folder; `about`, if given, is what they must depend on."""

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        self.folder, self.about = folder, about
        self.rows: dict[int, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            manifest = _read_manifest(path)
            if about is not None and manifest["about"] != about:
                raise ValueError(
                    f"{str(folder)!r} holds pictures of another model, or drawn with other "
                    "settings: use another folder, or remove it"
                )
            self.rows.update({int(i): row for i, row in manifest["pictures"].items()})

    def has(self, index: int, request: Request) -> bool:
        """Whether the picture is there as it was drawn for this request."""
        is_there = index in self.rows and self._path(index).is_file()
        return is_there and self.rows[index] == self._row(index, request)

    def image(self, index: int) -> Image.Image:
        with Image.open(self._path(index), formats=["PNG"]) as image:
            return image.convert("RGB")

    def keep(self, index: int, request: Request, image: Image.Image) -> None:
        image.save(self._path(index))
        self.rows[index] = self._row(index, request)

    def write_manifest(self, name: str, rows: Mapping[int, dict[str, Any]]) -> None:
        write_json(self.folder / name, {"about": self.about, "pictures": rows})

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05}.png"

    def _row(self, index: int, request: Request) -> dict[str, Any]:
        path = self._path(index)
        return {"file": path.name, **asdict(request), "sha256": sha256(path)}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        return {"about": content["about"], "pictures": dict(content["pictures"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no manifest of pictures: {error}") from error
