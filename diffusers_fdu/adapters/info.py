"""What an adapter is: what it unlearns, how strongly, how it was trained, and how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..utils.markup import cleaned
from .adapter_file import PEFT_WEIGHTS_NAME, WEIGHTS_NAME, AdapterFile
from .contents import weights_path
from .download import local_folder
from .evaluation_file import metric_reports, read_evaluation
from .export.exported import read_exported
from .read import read_adapter
from .summary import Rows, rows

LONGEST_REASON = 1000  # characters; it has a path


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter; `print` shows it.

    Args:
        path: its folder, or the file that it was exported to.
        format: "diffusers", "peft" or "kohya".
        component: the denoiser that it is for.
        ranks: of every layer.
        alphas: of every layer.
        norms: of every layer, |dW|_F at strength 1.
        parameters: numbers in its weights.
        bytes: of the file with its weights.
        recipe: what trained it; empty if that is not known.
        evaluation: what was measured of these weights, see `measured`; empty if nothing was.
        network: of an exported file, kohya's module that it is for.
        repo_id: its name on the Hub, if it was asked for by that.
        unmeasured: why the evaluation beside it does not count.
    """

    path: Path
    format: str
    component: str
    ranks: dict[str, int]
    alphas: dict[str, float]
    norms: dict[str, float]
    parameters: int
    bytes: int
    recipe: dict[str, Any] = field(repr=False)
    evaluation: dict[str, Any] = field(repr=False)
    network: str | None = None
    repo_id: str | None = None
    unmeasured: str | None = None

    @property
    def norm(self) -> float:
        """|dW|_F over all layers."""
        return math.hypot(*self.norms.values())

    @property
    def name(self) -> str:
        """The recipe's, or the folder's."""
        place = Path(self.repo_id).name if self.repo_id else self.path.resolve().stem
        return cleaned(self.recipe.get("adapter_name") or place)

    @property
    def load(self) -> list[str]:
        """Lines that load it."""
        path = self.repo_id or str(self.path)
        if self.format == "peft":
            return [f"diffusers_fdu.load_unlearned(pipe, {path!r})"]
        if self.network == "networks.lora_sd3":
            return ["in ComfyUI, or kohya's sd-scripts; in diffusers, the folder it came from"]
        if self.format == "kohya":
            others = "ComfyUI, Forge, sd-scripts"
            others += "" if self.network == "networks.lora_flux" else ", A1111"
            return [f"pipe.load_lora_weights({path!r})", f"or in {others}"]
        second = ", load_into_transformer_2=True" if self.component == "transformer_2" else ""
        return [f"pipe.load_lora_weights({path!r}{second})"]

    @property
    def weights(self) -> Rows:
        """What its weights are, in words."""
        least, most = (pick(self.norms, key=self.norms.__getitem__) for pick in (min, max))
        return [
            ("rank", _range(self.ranks)),
            ("alpha", _range(self.alphas)),
            ("adapted", f"{len(self.ranks)} layers of the {cleaned(self.component)}"),
            ("update", f"|dW| {self.norm:.4g} over all layers"),
            ("least changed", f"{self.norms[least]:.4g} in {cleaned(least)}"),
            ("most changed", f"{self.norms[most]:.4g} in {cleaned(most)}"),
            ("size", f"{self.parameters:,} numbers, {self.bytes:,} bytes, format {self.format}"),
        ]

    @property
    def rows(self) -> Rows:
        """All that is told of it."""
        unknown = [("unlearns", "not known: there is no recipe.json beside it")]
        measured = list(map(str, metric_reports(self.evaluation)))
        if self.evaluation:
            about = f"{self.evaluation['protocol']}, {self.evaluation['images']} images"
            measured.append(cleaned(f"by the protocol: {about}"))
        if self.unmeasured:
            measured.append(cleaned(self.unmeasured, LONGEST_REASON))
        return [
            *(rows(self.recipe) if self.recipe else unknown),
            *self.weights,
            *(("measured", text) for text in measured),
            *(("load", text) for text in self.load),
        ]

    def __str__(self) -> str:
        lines, above = [self.name], ""
        for label, text in self.rows:
            lines.append(f"  {label if label != above else '':13} {text}")
            above = label
        return "\n".join(lines)


def _range(values: Mapping[str, float]) -> str:
    least, most = min(values.values()), max(values.values())
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def describe(source: str | Path) -> AdapterInfo:
    """Read what there is to know of an adapter; nothing in it is executed.

        print(describe("runs/snoopy"))

    Args:
        source: folder of an adapter, see `read_adapter`, or its name on the Hub, `user/name`, or
            a file that `export` wrote, or a folder with one such file. Without `recipe.json`
            there is less to tell.

    Raises:
        ValueError: if it holds no adapter to be trusted.
        HubError: see `pull`.
    """
    folder = local_folder(source)
    path, repo_id = Path(folder), None if folder == source else str(source)
    if path.name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME):
        path = path.parent
    if path.is_dir() and not any((path / n).exists() for n in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME)):
        files = sorted(path.glob("*.safetensors"))
        path = files[0] if len(files) == 1 else path
    return _of_file(path) if path.is_file() else of_adapter(read_adapter(path), repo_id)


def of_adapter(found: AdapterFile, repo_id: str | None = None) -> AdapterInfo:
    """The same of an adapter that was read.

    Args:
        found: the adapter, in its folder.
        repo_id: its name on the Hub, if it was asked for by that.
    """
    modules, file = found.modules, weights_path(found)
    ranks = {name: found.rank(name) for name in modules}
    alphas = {name: found.alpha(name) for name in modules}
    evaluation, unmeasured = _evaluation(found.folder, file)
    return AdapterInfo(
        found.folder,
        found.format,
        found.component,
        ranks,
        alphas,
        {name: norm(*both, alphas[name] / ranks[name]) for name, both in modules.items()},
        sum(value.numel() for value in found.state.values()),
        file.stat().st_size,
        found.recipe,
        evaluation,
        repo_id=repo_id,
        unmeasured=unmeasured,
    )


def _of_file(path: Path) -> AdapterInfo:
    found = read_exported(path)
    layers = found.layers
    component = found.recipe.get("component")
    return AdapterInfo(
        path,
        "kohya",
        cleaned(component) if isinstance(component, str) else "denoiser",
        {name: layer.rank for name, layer in layers.items()},
        {name: layer.alpha for name, layer in layers.items()},
        {n: norm(layer.down, layer.up, layer.alpha / layer.rank) for n, layer in layers.items()},
        sum(layer.down.numel() + layer.up.numel() for layer in layers.values()),
        path.stat().st_size,
        found.recipe,
        {},  # files of several adapters may lie together
        found.header.get("ss_network_module"),
    )


def norm(down: Tensor, up: Tensor, scale: float) -> float:
    """|scale up @ down|_F, without a matrix of the layer's size."""
    down, up = down.double().flatten(1), up.double().flatten(1)
    return scale * max(0.0, ((up.T @ up) * (down @ down.T)).sum().item()) ** 0.5


def _evaluation(folder: Path, weights: Path) -> tuple[dict[str, Any], str | None]:
    """What was measured of the weights, or why what is there is not shown."""
    try:
        return read_evaluation(folder, weights) or {}, None
    except (ValueError, OSError) as error:
        return {}, str(error)
