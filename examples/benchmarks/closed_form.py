"""Time the closed-form start's decompositions: truncated and batched against full ones.

    python -m examples.benchmarks.closed_form --output runs/closed_form.json

Key and value layers of Stable Diffusion 1's and SDXL's UNets with random weights, which read
random tokens of a decaying or a flat spectrum. The full way decomposes every layer on the CPU in
float64, and a LoRA of rank 8 takes eight of the vectors. "Difference" is how far the two changes
of the layers are apart on the tokens, as a share; "error" is the squared error of the new one in
the metric that both minimise, beyond the least that is possible, as a share. Of both the worst
layer is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from diffusers_fdu.training.closed_form import KEEP, RIDGE, Moments, solve

WIDTHS = {
    "sd1": (768, (320,) * 10 + (640,) * 10 + (1280,) * 12),
    "sdxl": (2048, (640,) * 20 + (1280,) * 120),
    "tiny": (256, (384,) * 3),
}
DECAYS = {"decaying": 0.7, "flat": 0.0}  # powers of the place in the spectrum
RANK, TOKENS = 8, 8192
Rows = list[dict[str, Any]]


def layers_of(width: int, outputs: Sequence[int], device: str) -> list[Any]:
    """Linear layers with a new adapter."""
    model = nn.Sequential(*(nn.Linear(width, out, bias=False) for out in outputs)).to(device)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=[str(i) for i in range(len(outputs))]
    )
    return list(inject_adapter_in_model(config, model, "new"))


def tokens(width: int, decay: float, device: str) -> tuple[Tensor, Moments]:
    """Tokens of targets, and what the least squares need of them, their anchors and others."""
    scale = torch.arange(1, width + 1).double() ** -decay
    turn = torch.linalg.qr(torch.randn(width, width).double()).Q
    c, a, k = (torch.randn(TOKENS, width).double() * scale @ turn for _ in range(3))
    metric = (c.T @ c + KEEP * k.T @ k) / TOKENS
    metric.diagonal().add_(RIDGE * metric.diagonal().mean())
    moments = Moments(((a - c).T @ c / TOKENS).to(device), metric.to(device))
    return c, moments


@torch.no_grad()
def full(layers: Sequence[Any], moments: Moments) -> list[tuple[Tensor, float]]:
    """The nearest change of each layer, (out, D), and its squared error, decomposed in full."""
    pull, metric = moments.pull.cpu(), moments.metric.cpu()
    lower = torch.linalg.cholesky(metric)
    whitened = torch.linalg.solve_triangular(lower, pull.T, upper=False).T
    left, values, right = torch.linalg.svd(whitened)
    rows = torch.linalg.solve_triangular(lower.T, right.T, upper=True).T
    found = []
    for layer in layers:
        weight = layer.base_layer.weight
        answers = layer(((left * values).T).to(weight)).cpu().double()
        u, s, v = torch.linalg.svd(answers.T, full_matrices=False)
        change = (u[:, :RANK] * s[:RANK]) @ (v[:RANK] @ rows)
        found.append((change, s[RANK:].square().sum().item()))
    return found


@torch.no_grad()
def change_of(layer: Any) -> Tensor:
    """What the adapter adds to a layer's weight, (out, D), float64."""
    up, down = layer.lora_B["new"].weight, layer.lora_A["new"].weight
    return layer.scaling["new"] * (up.double() @ down.double()).cpu()


@torch.no_grad()
def excess(layer: Any, moments: Moments, change: Tensor, least: float) -> float:
    """Squared error of a change in the metric, beyond the least that is possible, as a share."""
    metric = moments.metric.cpu()
    pulled = layer.base_layer.weight.cpu().double() @ moments.pull.cpu()
    # |dW - W P M^-1|^2 in the metric M, without the inverse of M twice.
    missed = change - torch.linalg.solve(metric, pulled.T).T
    return ((missed @ metric) * missed).sum().item() / least - 1


def seconds(device: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """How long something takes, and its result."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def measure(size: str, spectrum: str, device: str) -> dict[str, Any]:
    """One size and spectrum, both ways."""
    torch.manual_seed(0)
    width, outputs = WIDTHS[size]
    layers = layers_of(width, outputs, device)
    c, moments = tokens(width, DECAYS[spectrum], device)
    solver = torch.no_grad()(solve)
    wanted_s, wanted = seconds("cpu", lambda: full(layers, moments))
    # Libraries are loaded at the first call.
    solver(layers_of(width, outputs[:1], device), "new", moments, torch.float32)
    found_s, _ = seconds(device, lambda: solver(layers, "new", moments, torch.float32))
    row = {"size": size, "layers": len(layers), "spectrum": spectrum}
    row |= {"full_s": wanted_s, "new_s": found_s, "difference": 0.0, "error": 0.0}
    for layer, (change, least) in zip(layers, wanted, strict=True):
        found = change_of(layer)
        apart = (c @ (found - change).T).norm() / (c @ change.T).norm()
        row["difference"] = max(row["difference"], apart.item())
        row["error"] = max(row["error"], excess(layer, moments, found, least))
    return row


def table(rows: Rows) -> str:
    """The rows in Markdown."""
    lines = ["| size | layers | spectrum | full s | new s | full / new | difference | error |"]
    lines.append("|---" * 8 + "|")
    for row in rows:
        cells = [row["size"], str(row["layers"]), row["spectrum"]]
        cells += [f"{row['full_s']:.2f}", f"{row['new_s']:.2f}"]
        cells += [f"{row['full_s'] / row['new_s']:.1f}"]
        cells += [f"{row['difference']:.1e}", f"{row['error']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")] = Path("runs/closed_form.json"),
    size: Annotated[list[str] | None, typer.Option(help="sd1, sdxl or tiny; may repeat.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
) -> None:
    """Time and compare every size and spectrum."""
    rows: Rows = []
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in size or ("sd1", "sdxl"):
        for spectrum in DECAYS:
            rows.append(measure(name, spectrum, device))
            output.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
