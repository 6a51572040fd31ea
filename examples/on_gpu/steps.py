"""Steps of Stable Diffusion 1, and of FLUX in 4 bits, as many variants as there is time for."""

from __future__ import annotations

from examples.benchmarks import denoisers
from examples.benchmarks.lines import Results
from examples.benchmarks.measuring import capped
from examples.benchmarks.train_step import Family, run_family

STEPS = 8
SD1_JOBS = (
    ("ours", 2),
    ("ours", 16),
    ("ours, gradient_checkpointing", 16),
    ("usual", 2),
    ("usual", 16),
    ("ours, compile", 16),
)
FLUX_VARIANT, FLUX_BATCH, FLUX_CAPS = "ours, 4-bit, row by row", 2, (24, 16)


def run_sd1(results: Results, tiny: bool = False) -> None:
    """Ours against the usual loop."""
    run_family(results, "tiny" if tiny else "sd1", 1 if tiny else STEPS, SD1_JOBS)


def run_flux(results: Results, tiny: bool = False) -> None:
    """A step of FLUX in the memory of smaller cards."""
    model, variant = ("tiny_flux" if tiny else "flux"), FLUX_VARIANT
    family, row = Family(model, results.device), {"model": model, "batch": FLUX_BATCH}
    if tiny and (reason := denoisers.no_four_bit(results.device)):
        results.add("train_step", **row, variant=variant, skipped=reason)
        variant = "ours, row by row"
    with results.attempt("train_step", **row, variant="build"):
        family.built("4-bit" in variant)
        results.add("build", **row, variant=variant)
    if results.device == "cpu":
        with results.attempt("train_step", **row, variant=variant):
            found = family.measure(variant, FLUX_BATCH, 1)
            results.add("train_step", **row, variant=variant, **found)
    for gib in FLUX_CAPS if results.device == "cuda" else ():
        row["variant"] = f"{variant}, at most {gib} GiB"
        with results.attempt("train_step", **row), capped(results.device, gib):
            results.add("train_step", **row, **family.measure(variant, FLUX_BATCH, 1))
