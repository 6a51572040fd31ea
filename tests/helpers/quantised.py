"""Tiny pipelines whose denoiser is quantised, and the plain weights that the quantised ones mean.

`BACKENDS` is the table that the tests go by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig, GGUFQuantizationConfig, TorchAoConfig
from families import FAMILIES
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from diffusers_fdu.pipelines.denoiser import denoiser_name

PRODUCT = 6.200124e-05  # what bitsandbytes has for 1 / 127^2: not quite, and inputs are rounded


@dataclass(frozen=True)
class Backend:
    """A way to quantise.

    Args:
        package: what it needs.
        quantise: a denoiser, an empty folder and a dtype to compute in -> the quantised one.
        plain: the float32 weight that a quantised layer stands for.
        inputs: what it makes of a layer's inputs; None: it leaves them.
        tolerance: relative error of predictions, against those of the plain weights.
        trained_tolerance: the same of an adapter's updates.
    """

    package: str
    quantise: Callable[[nn.Module, Path, torch.dtype], nn.Module]
    plain: Callable[[nn.Module], torch.Tensor]
    inputs: Callable[[torch.Tensor], torch.Tensor] | None = None
    tolerance: float = 1e-6
    trained_tolerance: float = 1e-4


def torchao(options: Callable[[Any], Any]) -> Backend:
    """Through `from_pretrained`; `options` makes torchao's configuration."""

    def quantise(model: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
        import torchao.quantization as ao

        model.save_pretrained(folder)
        narrow = ["x_embedder", "proj_out"]  # as wide as the picture's 4 channels
        config = TorchAoConfig(options(ao), modules_to_not_convert=narrow)
        kind = type(model)
        return kind.from_pretrained(folder, quantization_config=config, torch_dtype=dtype)

    return Backend("torchao", quantise, lambda layer: layer.weight.dequantize().float())


def gguf(name: str) -> Backend:
    """Through a file and `from_single_file`; layers of other widths than 32 n stay as they are."""

    def quantise(model: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
        from gguf import GGMLQuantizationType, GGUFWriter
        from gguf.quants import quantize

        model.save_config(folder)
        kind, path = GGMLQuantizationType[name], folder / "model.gguf"
        writer = GGUFWriter(path, "tiny")
        for key, value in model.state_dict().items():
            if value.dim() == 2 and value.shape[1] % 32 == 0:
                writer.add_tensor(key, quantize(value.numpy(), kind), raw_dtype=kind)
            else:
                writer.add_tensor(key, value.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        config = GGUFQuantizationConfig(compute_dtype=dtype)
        return type(model).from_single_file(
            str(path), config=str(folder), quantization_config=config, torch_dtype=dtype
        )

    def plain(layer: nn.Module) -> torch.Tensor:
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
        from gguf.quants import dequantize

        weight = layer.weight
        found = dequantize_gguf_tensor(weight).float()
        exact = torch.from_numpy(dequantize(weight.as_tensor().numpy(), weight.quant_type))
        # diffusers multiplies in float16, gguf in float32.
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-6)
        return found

    return Backend("gguf", quantise, plain)


def replaced(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """With other layers in place of the linear ones."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, make(child))
    return model


def bitsandbytes_8bit(model: nn.Module, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Layer by layer, as diffusers does on a GPU; it refuses to without one."""
    import bitsandbytes as bnb

    def make(layer: nn.Linear) -> nn.Module:
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(layer.weight.data, False, has_fp16_weights=False)
        made.bias = layer.bias
        return made.to("cpu")

    model.is_loaded_in_8bit = True
    return replaced(model.to(dtype), make)


def bitsandbytes_nf4(model: nn.Module, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Layer by layer, as diffusers does on a GPU; it refuses to without one."""
    import bitsandbytes as bnb

    def make(layer: nn.Linear) -> nn.Module:
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        made = bnb.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", module=made
        )
        made.bias = layer.bias
        # Some CPUs have a kernel of their own: without gradients, and it packs the weights anew.
        made.support_avx512bf16_for_cpu = False
        return made.to("cpu")

    model.is_loaded_in_4bit = True
    return replaced(model.to(dtype), make)


def plain_8bit(layer: nn.Module) -> torch.Tensor:
    state = layer.state
    rows, scales = (
        (layer.weight.CB, layer.weight.SCB) if state.CB is None else (state.CB, state.SCB)
    )
    return rows.float() * scales[:, None] * (127 * PRODUCT)


def rounded(inputs: torch.Tensor) -> torch.Tensor:
    """To 8 bits, by the largest of each row; gradients pass as if they were not."""
    half = inputs.detach().half()
    largest = half.abs().amax(-1, keepdim=True).float()
    steps = (half * (127 / largest)).round().nan_to_num()  # a row of zeros
    return inputs + (steps * largest / 127 - inputs).detach()


def plain_nf4(layer: nn.Module) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def int4(ao: Any) -> Any:
    return ao.IntxWeightOnlyConfig(torch.int4, ao.granularity.PerGroup(4))


BACKENDS = {
    "torchao_int8": torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "torchao_int4": torchao(int4),
    "gguf_q8_0": gguf("Q8_0"),
    "gguf_q4_0": gguf("Q4_0"),
    "bitsandbytes_8bit": Backend(
        "bitsandbytes", bitsandbytes_8bit, plain_8bit, rounded, 2e-3, 0.1
    ),
    "bitsandbytes_nf4": Backend("bitsandbytes", bitsandbytes_nf4, plain_nf4),
}


def quantised(
    family: str, backend: str, folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """A pipe and its quantised denoiser; the same one at every call."""
    made = BACKENDS[backend]
    pytest.importorskip(made.package)
    pipe = FAMILIES[family].build()
    folder.mkdir(parents=True)
    model = made.quantise(getattr(pipe, denoiser_name(pipe)), folder, dtype)
    setattr(pipe, denoiser_name(pipe), model.eval())
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(dtype)
    return pipe, model


def on_device(family: str, backend: str, folder: Path, device: str) -> tuple[Any, Any]:
    """A pipe on an accelerator, in bfloat16."""
    if backend.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
        pipe = FAMILIES[family].build()
        model = getattr(pipe, denoiser_name(pipe))
        model.save_pretrained(folder)
        bits: dict[str, Any] = {"load_in_8bit": True}
        if backend.endswith("nf4"):
            bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
            bits["bnb_4bit_compute_dtype"] = torch.bfloat16
        model = type(model).from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(**bits),
            torch_dtype=torch.bfloat16,
            device_map={"": device},
        )
        setattr(pipe, denoiser_name(pipe), model.eval())
    else:
        pipe, model = quantised(family, backend, folder / "model", torch.bfloat16)
        model.to(device)
    for part in pipe.components.values():
        if isinstance(part, nn.Module) and part is not model:
            part.to(device, torch.bfloat16)
    return pipe, model


def dequantised(family: str, backend: str, model: nn.Module) -> tuple[Any, nn.Module]:
    """The same pipe with plain weights, of the same values."""
    made, pipe = BACKENDS[backend], FAMILIES[family].build()
    plain = getattr(pipe, denoiser_name(pipe))
    with torch.no_grad():
        for name, module in plain.named_modules():
            layer = model.get_submodule(name)
            layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
            if is_quantised(layer):
                module.weight.copy_(made.plain(layer))
                if made.inputs is not None:
                    module.register_forward_pre_hook(lambda _, args: (made.inputs(args[0]),))
            for key, value in module.named_parameters(recurse=False):
                if not (key == "weight" and is_quantised(layer)):
                    value.copy_(getattr(layer, key))
    return pipe, plain


def is_quantised(layer: nn.Module) -> bool:
    """Whether its weight is not a plain one."""
    weight = getattr(layer, "weight", None)
    return weight is not None and (
        type(weight) is not nn.Parameter or type(weight.data) is not torch.Tensor
    )


def parts(value: Any) -> list[torch.Tensor]:
    """The plain tensors that a tensor is kept as."""
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return [part for name in names for part in parts(getattr(value, name))]
    return [value.as_subclass(torch.Tensor).detach().clone()]


def kept(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """All that a model keeps, adapters left out, under the names that it has without them."""
    return {
        name.replace(".base_layer.", "."): parts(value)
        for name, value in model.state_dict().items()
        if torch.is_tensor(value) and ".lora_" not in name
    }
