"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str | None, typer.Option(help="cuda or cpu; none: cuda if there.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="Of the pipeline: float32, bfloat16, float16, or auto: on CUDA bfloat16, or float16 "
        "if the card has none; elsewhere float32."
    ),
]
