"""Unlearning on the tiny pipe: fast settings, and what is on a pipe."""

from __future__ import annotations

import torch
from peft import LoraConfig

from diffusers_fdu import FDUnlearner

FAST = {"steps": 12, "batch_size": 4, "trajectories": 4, "early_stop": 0.0, "learning_rate": 1e-2}
RUNS = {"num_inference_steps": 3}


def unlearner(pipe, **config):
    return FDUnlearner(pipe, RUNS, progress=False, **{**FAST, **config})


def state(pipe):
    model = pipe.unet
    return {
        "names": [n for n, _ in model.named_parameters()],
        "grad": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "adapters": sorted(getattr(model, "peft_config", {})),
        "scheduler": str(pipe.scheduler.__dict__),
        "rng": torch.get_rng_state().tolist(),
        "attributes": sorted(set(model.__dict__) - {"_hf_peft_config_loaded"}),
    }


def add_other_adapter(pipe, strength=0.7):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_v"]), "other")
    torch.manual_seed(9)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    pipe.set_adapters(["other"], [strength])
    pipe.unet.requires_grad_(False)
