"""Ask the frozen denoiser about recorded states."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..pipelines.denoiser import extract_prediction, sample_name
from ..pipelines.offload import placement
from ..utils.micro_batches import MicroBatches
from .replay_buffer import DenoiserCall, Entry, ReplayBuffer


def predict(model: nn.Module, calls: Sequence[DenoiserCall]) -> Tensor:
    """Predictions of a denoiser, (B, ...); those of calls without places are left out."""
    name = sample_name(model)
    predictions = []
    for call in calls:
        prediction = extract_prediction(model(**call.inputs), call.inputs[name])
        # An empty slice still takes part in the backward pass, which a sharded denoiser needs.
        predictions.append(prediction if call.places else prediction[:0])
    if len(predictions) == 1:
        return predictions[0]
    places = torch.tensor([place for call in calls for place in call.places])
    return torch.cat(predictions)[places.argsort().to(predictions[0].device)]


@torch.no_grad()
def ask(
    model: nn.Module, buffer: ReplayBuffer, entries: Sequence[Entry], size: int = 16
) -> Tensor:
    """Predictions of a denoiser, as it is, for the states and texts of entries.

    They are (N, ...) on the CPU, float32; a call has `size` rows, or as many as fit the memory.
    """
    device, dtype = placement(model)

    def predict_part(part: Sequence[Entry]) -> Tensor:
        return predict(model, buffer.calls(part, device, dtype)).float().cpu()

    return torch.cat(MicroBatches(size).map(predict_part, entries))


def negative_guidance(conditional: Tensor, empty: Tensor, scale: float | Tensor) -> Tensor:
    """eps(empty) - scale (eps(target) - eps(empty)), as `NegativeGuidance` says."""
    return empty - scale * (conditional - empty)
