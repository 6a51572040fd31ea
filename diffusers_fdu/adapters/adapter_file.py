"""An adapter that was read from its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from torch import Tensor

Format = Literal["diffusers", "peft"]

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS_NAME, PEFT_CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # of every name in PEFT's own files


@dataclass(frozen=True)
class AdapterFile:
    """An adapter that was read.

    Args:
        folder: where it lies.
        format: of its files.
        component: the denoiser that it is for.
        state: its weights by PEFT's names in the denoiser: "….to_k.lora_A.weight" (rank, in, ...)
            and "….to_k.lora_B.weight" (out, rank, ...).
        config: r, lora_alpha, target_modules, rank_pattern, alpha_pattern.
        recipe: what trained it; empty if that is not known.
    """

    folder: Path
    format: Format
    component: str
    state: dict[str, Tensor]
    config: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def modules(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of every adapted layer."""
        names = dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in self.state)
        return {n: tuple(self.state[f"{n}.lora_{h}.weight"] for h in "AB") for n in names}  # type: ignore[misc]

    @property
    def digest(self) -> str:
        """Of the weights and their scale."""
        found = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for key, value in sorted(self.state.items()):
            found.update(key.encode() + value.float().numpy().tobytes())
        return found.hexdigest()

    def lora_config(self, strength: float = 1.0) -> LoraConfig:
        """PEFT's configuration of exactly these layers.

        Args:
            strength: what alpha is multiplied by.
        """
        r, alpha = self.config["r"], self.config["lora_alpha"]
        ranks = {f"^{name}$": self.rank(name) for name in self.modules}
        alphas = {f"^{name}$": self.alpha(name) for name in self.modules}
        return LoraConfig(
            r=r,
            lora_alpha=alpha if strength == 1 else strength * alpha,
            target_modules=sorted(self.modules),
            rank_pattern={name: rank for name, rank in ranks.items() if rank != r},
            alpha_pattern={n: strength * own for n, own in alphas.items() if own != alpha},
        )

    def rank(self, module: str) -> int:
        """Of one layer's update."""
        return self.state[f"{module}.lora_A.weight"].shape[0]

    def alpha(self, module: str) -> float:
        """The layer's update is alpha / rank B A."""
        return float(by_pattern(self.config["alpha_pattern"], module, self.config["lora_alpha"]))


def by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT looks a layer up: a pattern is its name, or the end of it, unless begun with ^.

    PEFT takes them for regular expressions; one from a stranger could run for ever, so
    `read_adapter` lets plain names alone pass.
    """
    for pattern, value in patterns.items():
        name = pattern.strip("^$")
        if module == name or (pattern[:1] != "^" and module.endswith(f".{name}")):
            return value
    return default
