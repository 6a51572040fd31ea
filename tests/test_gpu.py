"""The main job on a CUDA device; skipped without one."""

from __future__ import annotations

import pytest
import torch

from diffusers_fdu import FDUnlearner
from diffusers_fdu.emoji import STYLES, judge_cells, load_emoji_judge, load_emoji_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("error:.*loss kernel cannot run:RuntimeWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("dtype", "mixed_precision"),
    [(torch.float32, "no"), (torch.float32, "bf16"), (torch.bfloat16, "no")],
)
def test_unlearns_on_cuda(dtype, mixed_precision) -> None:
    pipe = load_emoji_pipeline(torch_dtype=dtype).to("cuda")
    worker = FDUnlearner(
        pipe, {"guidance_scale": 4.0}, progress=False, mixed_precision=mixed_precision
    )
    before = torch.cuda.get_rng_state()
    worker.unlearn("dog", "cat", f="kl")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert pipe.unet.dtype == dtype and pipe.device.type == "cuda"
    dogs = [("dog", style) for style in STYLES]
    verdicts = judge_cells(pipe, load_emoji_judge(), dogs, range(5))
    assert sum(v.seen[0] == "dog" for v in verdicts) <= 1
