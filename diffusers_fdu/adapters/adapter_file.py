"""An adapter as it lies in files: their names, and what is read of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peft import LoraConfig
from torch import Tensor

Format = Literal["diffusers", "peft"]

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS_NAME, PEFT_CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
FILE_NAMES: dict[Format, tuple[str, ...]] = {
    "diffusers": (WEIGHTS_NAME,),
    "peft": (PEFT_CONFIG_NAME, PEFT_WEIGHTS_NAME),
}
"""The files of each format; the last of them holds the weights."""
PEFT_PREFIX = "base_model.model."  # of every name in PEFT's own files


class Layer(NamedTuple):
    """One layer's update, alpha / rank up @ down: down is (rank, in, ...), up (out, rank, ...)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.down.shape[0]

    @property
    def norm(self) -> float:
        """The update's Frobenius norm, |dW|_F, without a matrix of the layer's size."""
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        square = ((up.T @ up) * (down @ down.T)).sum().item()
        return self.alpha / self.rank * max(0.0, square) ** 0.5


@dataclass(frozen=True)
class AdapterFile:
    """An adapter that was read from a folder, for the denoiser that `component` names.

    `state` has its weights by PEFT's names in the denoiser: "….to_k.lora_A.weight" (rank, in, ...)
    and "….to_k.lora_B.weight" (out, rank, ...). `config` has r, lora_alpha, target_modules,
    rank_pattern and alpha_pattern. `recipe` is empty if there is none.
    """

    folder: Path
    format: Format
    component: str
    state: dict[str, Tensor]
    config: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def weights_path(self) -> Path:
        """The file that holds the weights."""
        return self.folder / FILE_NAMES[self.format][-1]

    @property
    def layers(self) -> dict[str, Layer]:
        """Every adapted layer's update, by the layer's name."""
        layers = {}
        for name in dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in self.state):
            down, up = (self.state[f"{name}.lora_{half}.weight"] for half in "AB")
            alpha = by_pattern(self.config["alpha_pattern"], name, self.config["lora_alpha"])
            layers[name] = Layer(down, up, float(alpha))
        return layers

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and their scale."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for key, value in sorted(self.state.items()):
            digest.update(key.encode() + value.float().numpy().tobytes())
        return digest.hexdigest()

    def lora_config(self) -> LoraConfig:
        """PEFT's configuration of exactly these layers."""
        return LoraConfig(
            **layers_config(self.layers, self.config["r"], self.config["lora_alpha"])
        )


def layers_config(layers: Mapping[str, Layer], rank: int, alpha: float) -> dict[str, Any]:
    """An `AdapterFile.config` of these layers alone, some of which have another rank or alpha."""
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {f"^{n}$": x.rank for n, x in layers.items() if x.rank != rank},
        "alpha_pattern": {f"^{n}$": x.alpha for n, x in layers.items() if x.alpha != alpha},
    }


def by_pattern(patterns: Mapping[str, Any], layer_name: str, default: Any) -> Any:
    """Look a layer up as PEFT does: a pattern is its name or the end of it, or all of it after ^.

    PEFT takes patterns for regular expressions. One from a stranger could run for ever, so
    `read_adapter` lets nothing but plain names pass.
    """
    for pattern, value in patterns.items():
        name = pattern.strip("^$")
        if layer_name == name or (pattern[:1] != "^" and layer_name.endswith(f".{name}")):
            return value
    return default
