"""Command line: `diffusers-fdu <command>`.

The modules of the commands import torch and diffusers where they run, so that help is quick.
"""

from __future__ import annotations

import os
import sys

import typer

from . import adapters, compare, demo, evaluate, hub, unlearn

app = typer.Typer(
    help="Make a text-to-image model forget a concept, as a standard LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=unlearn.EXAMPLES)(unlearn.unlearn)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=adapters.STACK_EXAMPLES)(adapters.stack)
app.command(epilog=adapters.MERGE_EXAMPLES)(adapters.merge)
app.command(epilog=adapters.INFO_EXAMPLES)(adapters.info)
app.command(epilog=adapters.EXPORT_EXAMPLES)(adapters.export)
app.command("app", epilog=adapters.PAGE_EXAMPLES)(adapters.show_page)
app.command(epilog=hub.PUSH_EXAMPLES)(hub.push)
app.command(epilog=hub.PULL_EXAMPLES)(hub.pull)
app.command("list", epilog=hub.LIST_EXAMPLES)(hub.list_adapters)


def main() -> None:
    """Entry point: errors that a user can fix are one line, and the exit code is 1."""
    # Without torchvision, transformers warns about image processors that nothing here uses, as
    # soon as it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"error: {message}", err=True)
        sys.exit(1)
