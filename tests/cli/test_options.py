"""Options by name: `--config` and `--set`."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

import pytest
from typer.testing import CliRunner

from diffusers_fdu import Robust, Variational
from diffusers_fdu.cli import app, unlearn_job
from diffusers_fdu.cli.options import ConfigOptions, named_options, read_yaml
from diffusers_fdu.cli.unlearn import Unlearn
from diffusers_fdu.settings import option_names, settings

KNOWN = [*option_names(), "pipeline_kwargs"]
CONFIG = """
rank: 2
steps: 20
learning_rate: 1e-3
mixed_precision: no
robust: {every: 3, steps: 9}
pipeline_kwargs: {height: 512, width: 256}
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def resolved(config=None, explicit=None, *assignments: str) -> dict:
    options = ConfigOptions(config=config, assignments=[*assignments])
    return named_options(options, explicit or {}, KNOWN)


def test_set_goes_over_options_and_those_over_the_file(config) -> None:
    explicit = {"steps": 30, "seed": 5, "rank": None, "pipeline_kwargs.guidance_scale": 2.0}
    found = resolved(config, explicit, "seed=7", "robust.every=4", "pipeline_kwargs.width=128")
    assert (found["rank"], found["steps"], found["seed"]) == (2, 30, 7)
    assert found["robust"] == {"every": 4, "steps": 9}
    assert found["pipeline_kwargs"] == {"height": 512, "width": 128, "guidance_scale": 2.0}
    assert found["learning_rate"] == 0.001 and found["mixed_precision"] == "no"


def test_a_whole_value_goes_over_a_nested_one_and_back(config) -> None:
    assert resolved(config, {}, "robust=true")["robust"] is True
    assert resolved(config, {}, "robust=false", "robust.every=4")["robust"] == {"every": 4}


def test_nested_values_are_the_dataclasses() -> None:
    found = resolved(None, {}, "robust.every=3", "estimator.variational.width=32")
    chosen = settings(found)
    assert chosen.data.robust == Robust(every=3)
    assert chosen.train.estimator == Variational(width=32)
    assert settings({"estimator": {"variational": None}}).train.estimator == Variational()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+2", -250.0),
        (".5", 0.5),
        ("3", 3),
        ("no", "no"),
        ("true", True),
        ("[fox, a house]", ["fox", "a house"]),
        ("", None),
        ("e5", "e5"),
    ],
)
def test_values_are_yaml(text, value) -> None:
    found = read_yaml(text, "here")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rat=1", "unknown option 'learning_rat': did you mean learning_rate?"),
        ("robust.evry=3", "unknown option 'robust.evry': did you mean robust.every?"),
        ("estimator.variational.widht=3", "did you mean estimator.variational.width?"),
        ("xyz=3", "unknown option 'xyz': choose rank, alpha"),
        ("rank=eight", "rank must be an integer of at least 1, got 'eight'"),
        ("robust.every=0", "every must be an integer of at least 1, got 0"),
        ("steps.most=3", "steps must be an integer of at least 1, got {'most': 3}"),
        ("surgery", "--set 'surgery': write name=value"),
        ("retain=[fox", "cannot read --set retain="),
        ("pipeline_kwargs=5", "pipeline_kwargs must be a mapping of names, got 5"),
    ],
)
def test_what_cannot_be_is_refused(assignment, message) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        settings(resolved(None, {}, assignment))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"- steps", "is no mapping of names such as 'steps: 50'"),
        (b"steps: [", "cannot read"),
        (b"\xff\xfe", "cannot read"),
        (b"setps: 3", "did you mean steps?"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, TypeError)) as error:
        resolved(path)
    assert message in str(error.value)


def test_unlearn_resolves_its_options(tmp_path, config) -> None:
    command = Unlearn(
        model="emoji",
        output_dir=tmp_path / "out",
        target=["dog"],
        rank=4,
        resume=True,
        device="cpu",
        config=config,
        assignments=["prefer=erase", "component=unet", "log_with=[]"],
        f="auto",
    )
    job = unlearn_job.resolve_job(command)
    assert job.f == "chi2" and job.checkpoint_every == 20
    kwargs = {"guidance_scale": 4.0, "height": 512, "width": 256}
    assert job.options["pipeline_kwargs"] == kwargs and job.options["component"] == "unet"
    assert (job.options["rank"], job.options["steps"]) == (4, 20)
    assert [listed.concept.target for listed in job.concepts] == ["dog"]
    assert not (tmp_path / "out").exists()


def test_unknown_names_are_refused_by_the_command() -> None:
    arguments = ["unlearn", "--model", "emoji", "--target", "dog", "--output-dir", "x"]
    result = CliRunner().invoke(app, [*arguments, "--set", "setps=3"])
    assert "did you mean steps?" in str(result.exception)


def test_help_imports_neither_torch_nor_diffusers() -> None:
    code = "import sys; from diffusers_fdu.cli import app\ntry: app(['unlearn', '--help'])\n"
    code += "except SystemExit: print([n for n in ('torch', 'diffusers') if n in sys.modules])"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and not done.stderr


def test_a_mapping_without_names_is_as_if_it_was_not_there(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("pipeline_kwargs:\nsteps: 3\n")
    assert resolved(path) == {"steps": 3}
    scale = {"pipeline_kwargs.guidance_scale": 2.0}
    assert resolved(path, scale)["pipeline_kwargs"] == {"guidance_scale": 2.0}
