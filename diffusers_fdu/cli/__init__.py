"""Command line: `diffusers-fdu <command>`."""

from __future__ import annotations

import sys

import typer
from transformers.utils import logging as transformers_logging

from . import (
    evaluate as evaluating,
)
from . import (
    hub,
    sharing,
    training,
)

app = typer.Typer(
    help="Make a text-to-image model forget a concept, as a standard LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog=training.DEMO_EXAMPLES)(training.demo)
app.command(epilog=training.UNLEARN_EXAMPLES)(training.unlearn)
app.command(epilog=training.COMPARE_EXAMPLES)(training.compare)
app.command(epilog=evaluating.EVALUATE_EXAMPLES)(evaluating.evaluate)
app.command(epilog=sharing.STACK_EXAMPLES)(sharing.stack)
app.command(epilog=sharing.MERGE_EXAMPLES)(sharing.merge)
app.command(epilog=sharing.INFO_EXAMPLES)(sharing.info)
app.command(epilog=sharing.EXPORT_EXAMPLES)(sharing.export)
app.command("app", epilog=sharing.PAGE_EXAMPLES)(sharing.show_page)
app.command(epilog=hub.PUSH_EXAMPLES)(hub.push)
app.command(epilog=hub.PULL_EXAMPLES)(hub.pull)
app.command("list", epilog=hub.LIST_EXAMPLES)(hub.list_adapters)


def main() -> None:
    """Entry point: errors that a user can fix are one line, and the exit code is 1."""
    # Without torchvision, transformers warns about image processors that nothing here uses.
    transformers_logging.set_verbosity_error()
    try:
        app()
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"error: {message}", err=True)
        sys.exit(1)
