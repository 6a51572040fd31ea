"""Commands for the Hub: push, pull, list."""

from dataclasses import dataclass
from pathlib import Path

import typer

from .options import argument, option

TOKEN = "Token of the Hub; by default that of whoever is logged in."


@dataclass(frozen=True, kw_only=True)
class Push:
    """Put an adapter on the Hub, with a model card; plain diffusers loads it from there.

    Examples:
        diffusers-fdu push runs/snoopy me/no-snoopy --private
        diffusers-fdu push runs/snoopy me/no-snoopy --license creativeml-openrail-m
            --base-model stable-diffusion-v1-5/stable-diffusion-v1-5
        diffusers-fdu push runs/dog me/no-dog-emoji --base-model ""
    """

    folder: Path = argument("Folder that an adapter was saved to.")
    repo_id: str = argument("Repository on the Hub, user/name; it is made if missing.")
    private: bool | None = option(
        "Whether the repository is private; by default as it is, or as the Hub makes new ones.",
        None,
        "--private/--public",
    )
    base_model: str | None = option(
        'Name of the base model on the Hub, or "" if it is not there; by default the recipe\'s.'
    )
    license: str | None = option("License of the base model, as the Hub names it.")
    commit_message: str | None = option("Message of the commit.")
    token: str | None = option(TOKEN)

    def __call__(self) -> None:
        from ..hub.push import push as push_adapter

        url = push_adapter(**vars(self))
        typer.echo(f"pushed to {url}; load it with pipe.load_lora_weights({self.repo_id!r})")


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Take an adapter from the Hub: its weights, recipe and card alone, which are checked.

    Examples:
        diffusers-fdu pull me/no-snoopy --output-dir runs/snoopy
        diffusers-fdu pull me/no-snoopy --revision v1 --output-dir runs/snoopy
    """

    repo_id: str = argument("Repository on the Hub, user/name.")
    output_dir: Path | None = option("New or empty folder for the files; by default the cache.")
    revision: str | None = option("Branch, tag or commit that is pulled.")
    token: str | None = option(TOKEN)

    def __call__(self) -> None:
        from ..adapters.download import pull as pull_adapter

        typer.echo(f"pulled to {pull_adapter(**vars(self))}")


@dataclass(frozen=True, kw_only=True)
class ListAdapters:
    """List adapters on the Hub that were pushed by this library, most downloaded first.

    Examples:
        diffusers-fdu list
        diffusers-fdu list --base-model stable-diffusion-v1-5/stable-diffusion-v1-5 --target Snoopy
    """

    base_model: str | None = option("Only adapters for this base model, org/name.")
    target: str | None = option("Only adapters that forget this concept.")
    limit: int = option("Number of adapters that are listed at most.", 50)
    token: str | None = option(TOKEN)

    def __call__(self) -> None:
        from ..hub.search import find_adapters
        from ..utils.markup import cleaned

        adapters = find_adapters(**vars(self))
        for adapter in adapters:
            # Anyone may write these tags, so they are cleaned.
            texts = [adapter.repo_id, adapter.base_model or "-", ", ".join(adapter.targets) or "?"]
            typer.echo("  ".join([*map(cleaned, texts), f"{adapter.downloads} downloads"]))
        if not adapters:
            typer.echo("none found")
