"""Commands for the Hub: push, pull, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PUSH_EXAMPLES = """
Examples:

  diffusers-fdu push runs/snoopy me/no-snoopy --private

  diffusers-fdu push runs/snoopy me/no-snoopy
  --base-model stable-diffusion-v1-5/stable-diffusion-v1-5 --license creativeml-openrail-m

  diffusers-fdu push runs/dog me/no-dog-emoji --base-model ""
"""

PULL_EXAMPLES = """
Examples:

  diffusers-fdu pull me/no-snoopy --output-dir runs/snoopy

  diffusers-fdu pull me/no-snoopy --revision v1 --output-dir runs/snoopy
"""

LIST_EXAMPLES = """
Examples:

  diffusers-fdu list

  diffusers-fdu list --base-model stable-diffusion-v1-5/stable-diffusion-v1-5 --target Snoopy
"""

Token = Annotated[str | None, typer.Option(help="none: of whoever is logged in.")]


def push(
    folder: Annotated[Path, typer.Argument(help="What an adapter was saved to.")],
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub; made if missing.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="none: as it is, or as the Hub makes new ones."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help='Its name on the Hub; "": it is not there; none: the recipe\'s.'),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Of the base model, as the Hub names it.")
    ] = None,
    commit_message: Annotated[str | None, typer.Option(help="Of the one commit.")] = None,
    token: Token = None,
) -> None:
    """Put an adapter on the Hub, with a model card; plain diffusers loads it from there."""
    from ..hub.push import push as run

    url = run(
        folder,
        repo_id,
        private=private,
        token=token,
        commit_message=commit_message,
        base_model=base_model,
        license=license,
    )
    typer.echo(f"pushed to {url}; load it with pipe.load_lora_weights({repo_id!r})")


def pull(
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="A new or empty folder; none: the Hub's cache.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    token: Token = None,
) -> None:
    """Take an adapter from the Hub: safetensors, recipe and card alone, and checked."""
    from ..adapters.download import pull as run

    folder = run(repo_id, output_dir, revision=revision, token=token)
    typer.echo(f"pulled to {folder}")


def list_adapters(
    base_model: Annotated[str | None, typer.Option(help="org/name that they are for.")] = None,
    target: Annotated[str | None, typer.Option(help="What they forget.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 50,
    token: Token = None,
) -> None:
    """List adapters on the Hub that were pushed by this library, most downloaded first."""
    from ..hub.search import find_adapters
    from ..utils.markup import cleaned

    found = find_adapters(base_model, target, token=token, limit=limit)
    for one in found:
        # Tags are anyone's.
        names = [one.repo_id, one.base_model or "-", ", ".join(one.targets) or "?"]
        typer.echo("  ".join([*map(cleaned, names), f"{one.downloads} downloads"]))
    if not found:
        typer.echo("none found")
