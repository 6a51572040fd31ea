"""Options that several commands share, and those that `--config` and `--set` reach by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
import yaml

from ..settings import check_names

MAPPINGS = ("pipeline_kwargs", "concept")  # options that hold options
Options = TypeVar("Options")

Model = Annotated[str, typer.Option(help="Folder or Hub id of a pipeline, or `emoji`.")]
Kind = Annotated[str, typer.Option(help="object, style or prompt.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="Of the pipeline's runs; by default the pipeline's own, 4 for `emoji`."),
]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Options that say where a pipeline runs."""

    device: Annotated[
        str | None, typer.Option(help="cuda or cpu; by default cuda if it is there.")
    ] = None
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the pipeline: float32, bfloat16, float16, or auto: on CUDA bfloat16, or "
            "float16 if the card has none; elsewhere float32."
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class Named(Placement):
    """Options that reach every other option of the library by its name."""

    config: Annotated[
        Path | None, typer.Option(help="YAML file with any option of the library, by name.")
    ] = None
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any option of the library, such as batch_size=8, robust.every=3 or "
            "pipeline_kwargs.height=512; may be repeated.",
        ),
    ] = None


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Give a command, a function of one dataclass, an option for each of its fields."""
    hints = get_type_hints(options, include_extras=True)
    own = [name for kind in options.__mro__ for name in vars(kind).get("__annotations__", ())]
    defaults = {field.name: field.default for field in fields(options)}  # type: ignore[arg-type]
    parameters = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if defaults[name] is MISSING else defaults[name],
            annotation=hints[name],
        )
        for name in dict.fromkeys(own)
    ]

    def decorated(run: Callable[[Options], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            run(options(**values))

        command.__name__, command.__doc__ = run.__name__, run.__doc__
        command.__module__ = run.__module__
        command.__annotations__ = hints
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorated


class _Loader(yaml.SafeLoader):
    """Reads booleans and numbers as YAML 1.2 has them: `no` is a text, and 1e-3 a number."""


_OLD = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OLD]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_OLD[0], re.compile(r"(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _OLD[1],
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, source: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: if it is no YAML, with its source.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read {source}: {' '.join(str(error).split())}") from error


def read_file(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        ValueError: if it cannot be read, or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    return read_yaml(text, repr(str(path)))


def named_options(
    given: Named, explicit: Mapping[str, Any], known: Collection[str]
) -> dict[str, Any]:
    """Options by name: those of `--config`, over them the command's own, over them `--set`.

    Args:
        given: the command's options.
        explicit: what the command's own options say of the library's; None is left out.
        known: names that may be used; what stands below a name is checked where it is used.

    Raises:
        ValueError: for a file that is no mapping, or a `--set` without "=".
        TypeError: for an unknown name, with the nearest one.
    """
    found: dict[str, Any] = {}
    if given.config is not None:
        content = read_file(given.config)
        if not isinstance(content, dict):
            raise ValueError(f"{str(given.config)!r} is no mapping of names such as 'steps: 50'")
        found = content
    _update(found, {name: value for name, value in explicit.items() if value is not None})
    for assignment in given.assignments or ():
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set {assignment!r}: write name=value")
        value = read_yaml(text, f"--set {assignment}")
        for name in reversed(path.split(".")):
            value = {name: value}
        _update(found, value)
    check_names(found, known)
    for name in MAPPINGS:
        if not isinstance(found.get(name, {}), dict):
            raise ValueError(f"{name} must be a mapping of names, got {found[name]!r}")
    return found


def _update(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put values over others; mappings are joined name by name."""
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), dict):
            _update(found[name], value)
        else:
            found[name] = value
