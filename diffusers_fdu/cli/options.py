"""Options that several commands share, and those that `--config` and `--set` reach by name."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
import yaml

from ..settings import check_names

MAPPINGS = ("pipeline_kwargs", "concept")  # options that hold options

MODEL = "The pipeline: a folder, a Hub id, or `emoji` for the embedded model."
KIND = "Kind of the concept: object, style or prompt."
SEED = "Seed of the prompts, the noise and the initial weights."
GUIDANCE_SCALE = "Guidance scale of the runs; by default the pipeline's own, 4 for `emoji`."


def option(help: str, default: Any = None, *names: str, **details: Any) -> Any:
    """A field of a command, which the command line shows as an option with this help text."""
    return field(default=default, metadata={"typer": typer.Option(*names, help=help, **details)})


def required(help: str) -> Any:
    """An option that must be given."""
    return option(help, MISSING)


def argument(help: str) -> Any:
    """A field of a command that the command line takes by its position."""
    return field(metadata={"typer": typer.Argument(help=help)})


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """Options that say where a pipeline runs."""

    device: str | None = option("Device, such as cuda or cpu; by default cuda if there is one.")
    dtype: str = option(
        "Dtype of the pipeline: float32, bfloat16, float16 or auto. On CUDA, auto is bfloat16, "
        "or float16 if the card lacks bfloat16; elsewhere it is float32.",
        "auto",
    )


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(PlacementOptions):
    """Options that reach every other option of the library by its name."""

    config: Path | None = option("YAML file that sets options of the library by name.")
    assignments: list[str] | None = option(
        "Option of the library, such as batch_size=8 or robust.every=3; it may be repeated.",
        None,
        "--set",
        metavar="NAME=VALUE",
    )


def as_function(command: type[Any]) -> Callable[..., None]:
    """A function that makes a command of its options and calls it.

    Typer reads options from a signature, so this one has the command's fields, shared ones last.
    """
    hints = get_type_hints(command)
    shared = [each.name for each in fields(ConfigOptions)]
    parameters = [
        Parameter(
            each.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if each.default is MISSING else each.default,
            annotation=Annotated[hints[each.name], each.metadata["typer"]],
        )
        for each in sorted(fields(command), key=lambda each: each.name in shared)
    ]

    def function(**values: Any) -> None:
        command(**values)()

    function.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return function


class _Loader(yaml.SafeLoader):
    """Reads booleans and numbers as YAML 1.2 has them: `no` is a text, and 1e-3 a number."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML; a ValueError names the source if it is none."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read {source}: {' '.join(str(error).split())}") from error


def read_yaml_file(path: Path) -> Any:
    """Read a YAML file; a ValueError says why if that fails."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    return read_yaml(text, repr(str(path)))


def named_options(
    options: ConfigOptions, explicit: Mapping[str, Any], known: Collection[str]
) -> dict[str, Any]:
    """Options by name: those of `--config`, over them the command's own, over them `--set`.

    The command's own are `explicit`, by their dotted names; one that is None was not given. All
    names must be `known`; what stands below a name is checked where it is used.
    """
    values: dict[str, Any] = {}
    if options.config is not None:
        values = read_yaml_file(options.config)
        if not isinstance(values, dict):
            raise ValueError(f"{str(options.config)!r} is no mapping of names such as 'steps: 50'")
    changes = [(path, value) for path, value in explicit.items() if value is not None]
    for assignment in options.assignments or ():
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set {assignment!r}: write name=value")
        changes.append((path, read_yaml(text, f"--set {assignment}")))
    for path, value in changes:
        for name in reversed(path.split(".")):
            value = {name: value}
        _update(values, value)
    check_names(values, known)
    for name in MAPPINGS:
        if values.get(name, {}) is None:  # as YAML reads a name without a value
            del values[name]
        elif not isinstance(values.get(name, {}), dict):
            raise ValueError(f"{name} must be a mapping of names, got {values[name]!r}")
    return values


def _update(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put values over others; mappings are joined name by name."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            _update(values[name], value)
        else:
            values[name] = value
