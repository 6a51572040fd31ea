"""Command line: `diffusers-fdu <command>`.

The modules of the commands import torch and diffusers inside their functions, so that help is
quick.
"""

import inspect
import os
import sys

import typer

from . import adapters, compare, demo, evaluate, hub, unlearn
from .options import as_function

app = typer.Typer(
    help="Make a text-to-image model forget a concept, as a standard LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = {
    "demo": demo.Demo,
    "unlearn": unlearn.Unlearn,
    "compare": compare.Compare,
    "evaluate": evaluate.Evaluate,
    "stack": adapters.Stack,
    "merge": adapters.Merge,
    "info": adapters.Info,
    "export": adapters.Export,
    "app": adapters.ShowPage,
    "push": hub.Push,
    "pull": hub.Pull,
    "list": hub.ListAdapters,
}
for name, command in COMMANDS.items():
    text = (inspect.getdoc(command) or "").replace("    diffusers-fdu", "\n\ndiffusers-fdu")
    # Typer keeps the line breaks of all paragraphs but the first, so each becomes one line.
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    description, heading, examples = text.partition("Examples:")
    app.command(name, help=description, epilog=heading + examples)(as_function(command))


def main() -> None:
    """Run the command line; an error that a user can fix is one line, and the exit code is 1."""
    # Without torchvision, transformers warns about image processors that nothing here uses, as
    # soon as it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        typer.echo(f"error: {message}", err=True)
        sys.exit(1)
