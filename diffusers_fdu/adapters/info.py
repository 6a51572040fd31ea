"""What an adapter is: what it unlearns, how strongly, how it was trained, and how to load it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.markup import cleaned
from .adapter_file import PEFT_WEIGHTS_NAME, WEIGHTS_NAME, AdapterFile, Layer
from .download import Source, holds_weights, local_folder
from .evaluation_file import metric_reports, read_evaluation
from .export.export import read_exported
from .read import read_adapter
from .summary import Rows, recipe_rows, text_or_empty


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter; `print` shows it.

    `path` is its folder, or the file that it was exported to, and `format` is "diffusers", "peft"
    or "kohya". `ranks`, `alphas` and `norms`, |dW|_F at strength 1, are by layer; `parameters` and
    `bytes` are its numbers and the size of their file. `evaluation` is empty if these weights were
    not measured, and `unmeasured` says why an evaluation beside them does not count. `network` is
    kohya's module that an exported file is for, and `repo_id` the name that it was asked for by.
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
        """The name in the recipe, or else that of the place."""
        place = Path(self.repo_id).name if self.repo_id else self.path.resolve().stem
        return cleaned(self.recipe.get("adapter_name") or place)

    @property
    def load(self) -> list[str]:
        """Lines of code that load it, or the programs that do."""
        path = self.repo_id or str(self.path)
        if self.format == "peft":
            return [f"diffusers_fdu.load_unlearned(pipe, {path!r})"]
        if self.network == "networks.lora_sd3":
            return ["in ComfyUI, or kohya's sd-scripts; in diffusers, the folder it came from"]
        if self.format == "kohya":
            also = "" if self.network == "networks.lora_flux" else ", A1111"
            return [f"pipe.load_lora_weights({path!r})", f"or in ComfyUI, Forge, sd-scripts{also}"]
        second = ", load_into_transformer_2=True" if self.component == "transformer_2" else ""
        return [f"pipe.load_lora_weights({path!r}{second})"]

    @property
    def weights(self) -> Rows:
        """What its weights are, as labels and texts."""
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
        """All that is known of it, as labels and texts."""
        unknown = [("unlearns", "not known: there is no recipe.json beside it")]
        measured = list(map(str, metric_reports(self.evaluation)))
        if self.evaluation:
            protocol = f"{self.evaluation['protocol']}, {self.evaluation['images']} images"
            measured.append(cleaned(f"by the protocol: {protocol}"))
        if self.unmeasured:
            measured.append(cleaned(self.unmeasured, 1000))  # it has a path
        return [
            *(recipe_rows(self.recipe) if self.recipe else unknown),
            *self.weights,
            *(("measured", text) for text in measured),
            *(("load", text) for text in self.load),
        ]

    def __str__(self) -> str:
        lines, label_above = [self.name], ""
        for label, text in self.rows:
            lines.append(f"  {label if label != label_above else '':13} {text}")
            label_above = label
        return "\n".join(lines)


def _range(values: Mapping[str, float]) -> str:
    least, most = min(values.values()), max(values.values())
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def describe(source: Source) -> AdapterInfo:
    """Read what there is to know of an adapter; nothing in it is executed.

    Args:
        source: an adapter's folder, its name on the Hub, `user/name`, a file that `export` wrote,
            or a folder with one such file. Without `recipe.json` there is less to tell.

    Returns:
        What it unlearns, how it was trained, its weights, what was measured, and how to load it:
        as attributes, and as a text that `print` shows.

    Raises:
        ValueError: if it holds no adapter to be trusted.
        HubError: with the fix, if the Hub or the network fails.

    Example:
        >>> info = describe("forget-dog")
        >>> info.name, info.format, set(info.ranks.values())
        ('forget-dog', 'diffusers', {4})
    """
    folder = local_folder(source)
    path, repo_id = Path(folder), None if folder == source else str(source)
    if path.name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME):
        path = path.parent
    if path.is_dir() and not holds_weights(path):
        files = sorted(path.glob("*.safetensors"))
        path = files[0] if len(files) == 1 else path
    if not path.is_file():
        return adapter_info(read_adapter(path), repo_id)
    layers, header, recipe = read_exported(path)
    return AdapterInfo(
        path,
        "kohya",
        text_or_empty(recipe.get("component")) or "denoiser",
        **_measure(layers),
        bytes=path.stat().st_size,
        recipe=recipe,
        evaluation={},  # files of several adapters may lie together
        network=header.get("ss_network_module"),
    )


def adapter_info(adapter_file: AdapterFile, repo_id: str | None = None) -> AdapterInfo:
    """What `describe` tells of an adapter that was read; `repo_id` is the name it was asked by."""
    weights, unmeasured = adapter_file.weights_path, None
    try:
        evaluation = read_evaluation(weights) or {}
    except (ValueError, OSError) as error:
        evaluation, unmeasured = {}, str(error)
    return AdapterInfo(
        adapter_file.folder,
        adapter_file.format,
        adapter_file.component,
        **_measure(adapter_file.layers),
        bytes=weights.stat().st_size,
        recipe=adapter_file.recipe,
        evaluation=evaluation,
        repo_id=repo_id,
        unmeasured=unmeasured,
    )


def _measure(layers: Mapping[str, Layer]) -> dict[str, Any]:
    return {
        "ranks": {name: layer.rank for name, layer in layers.items()},
        "alphas": {name: layer.alpha for name, layer in layers.items()},
        "norms": {name: layer.norm for name, layer in layers.items()},
        "parameters": sum(layer.down.numel() + layer.up.numel() for layer in layers.values()),
    }
