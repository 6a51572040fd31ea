from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from conftest import build_tiny_pipe, latents
from PIL import Image
from tiny import FAST, RUNS, add_other_adapter, state

from diffusers_fdu import FDUnlearner, compare, load_comparison
from diffusers_fdu.evaluation.comparison import Comparison, Point
from diffusers_fdu.evaluation.plots import plot_profiles, plot_tradeoff

CALLS = []


def norms(pipe) -> tuple[float, float]:
    """A measure that knows what it was called with."""
    drawn = latents(pipe)
    CALLS.append(drawn)
    return drawn.abs().mean().clamp(0, 1).item(), 0.5


def run(pipe, **options):
    arguments = {
        "fs": ["kl", "tv"],
        "seeds": 2,
        "strengths": [0.5, 1.0],
        "pipeline_kwargs": RUNS,
        "progress": False,
    }
    return compare(pipe, "dog", "cat", **{**arguments, **FAST, **options})


def points(*values) -> Comparison:
    made = [Point(f, s, w, e, k, 1, 1.0) for f, s, w, e, k in values]
    return Comparison("dog", tuple(made), (0.0, 1.0))


def test_every_f_seed_and_strength_is_measured_and_the_pipe_left(pipe) -> None:
    add_other_adapter(pipe)
    drawn, before = latents(pipe), state(pipe)
    found = run(pipe)
    asked = [(p.f, p.seed, p.strength) for p in found.points]
    assert asked == [(f, s, w) for s in (0, 1) for f in ("kl", "tv") for w in (0.5, 1.0)]
    assert state(pipe) == before and torch.equal(latents(pipe), drawn)
    assert all(0 <= p.erased <= 1 and 0 <= p.kept <= 1 for p in found.points)
    assert found.before[0] == pytest.approx(0, abs=1e-3) and found.before[1] > 0.99
    by_strength = [p.erased for p in found.points if p.f == "kl" and p.seed == 0]
    assert by_strength[0] < by_strength[1]


def test_it_measures_what_training_alone_would_give(pipe) -> None:
    CALLS.clear()
    run(pipe, fs=["js"], seeds=[3], strengths=[1.0, 0.0], measure=norms)
    base = latents(pipe)
    worker = FDUnlearner(pipe, RUNS, progress=False, **FAST, seed=3)
    worker.unlearn("dog", "cat", f="js")
    before, full, none = CALLS
    assert torch.equal(before, base)
    torch.testing.assert_close(none, base, rtol=0, atol=1e-5)
    torch.testing.assert_close(full, latents(pipe), rtol=0, atol=1e-6)


def test_an_interrupted_comparison_goes_on(pipe, tmp_path) -> None:
    class Stop(Exception):
        pass

    def two(pipe):
        if len(CALLS) == 4:
            raise Stop
        return norms(pipe)

    CALLS.clear()
    two.cache_key = "measure"
    with pytest.raises(Stop):
        run(pipe, cache=tmp_path, measure=two)
    assert pipe.unet.peft_config == {} if hasattr(pipe.unet, "peft_config") else True

    def rest(pipe):
        return norms(pipe)

    rest.cache_key = "measure"
    CALLS.append(None)
    found = run(pipe, cache=tmp_path, measure=rest)
    assert len(CALLS) == 5 + 6  # one of four trainings was done, and the pipe before
    again = run(build_tiny_pipe(), cache=tmp_path, measure=rest)
    assert again == found and len(CALLS) == 11
    whole = run(build_tiny_pipe(), measure=rest)
    assert [p.erased for p in whole.points] == [p.erased for p in found.points]
    other = run(pipe, cache=tmp_path, measure=rest, steps=5, fs=["kl"], seeds=1)
    assert other.points[0].steps == 5  # other options, other results


def test_means_front_and_best() -> None:
    found = points(
        ("kl", 0, 1.0, 0.9, 0.5),
        ("kl", 1, 1.0, 1.0, 0.7),
        ("kl", 0, 0.5, 0.2, 1.0),
        ("kl", 1, 0.5, 0.2, 0.9),
        ("tv", 0, 1.0, 0.93, 0.5),  # beaten by kl
        ("js", 0, 1.0, 0.9, 0.8),
        ("chi2", 0, 1.0, 1.0, 0.1),
    )
    first = found.averages()[0]
    assert (first.f, first.strength) == ("kl", 1.0)
    assert (first.erased.mean, first.kept.mean) == pytest.approx((0.95, 0.6))
    assert first.harmonic == pytest.approx(2 * 0.95 * 0.6 / 1.55)
    front = [(a.f, a.strength) for a in found.front()]
    assert front == [("kl", 0.5), ("js", 1.0), ("kl", 1.0), ("chi2", 1.0)]
    assert found.best("erase").f == "chi2"
    assert found.best("balance").f == "js" and found.best().f == "js"
    assert found.best("preserve").f == "js"
    with pytest.raises(ValueError, match="unknown preference 'most'"):
        found.best("most")
    lines = found.table().splitlines()
    assert "| kl | 1 | 0.950 ± 0.635 | 0.600 ± 1.271 | 0.735 | * |" in lines
    assert "| tv | 1 | 0.930 | 0.500 | 0.650 |  |" in lines


def test_saving_and_loading(tmp_path) -> None:
    found = points(("kl", 0, 1.0, 0.9, 0.5), ("tv", 0, 1.0, 0.8, 0.6))
    assert load_comparison(found.save(tmp_path)) == found
    assert (tmp_path / "comparison.md").read_text() == found.table() + "\n"
    with pytest.raises(ValueError, match="no comparison in .*nowhere"):
        load_comparison(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fs": ["helinger"]}, "unknown divergence 'helinger'"),
        ({"fs": []}, "nothing to compare"),
        ({"seeds": 0}, "nothing to compare"),
        ({"seed": 1}, "pass seeds, not seed"),
        ({"rank": 0}, "rank must be"),
        ({"fs": ["kl", "le_cam"], "estimator": "variational"}, "'le_cam' has no conjugate"),
    ],
)
def test_bad_arguments(pipe, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(pipe, **options)


def test_only_names(pipe) -> None:
    with pytest.raises(TypeError, match="fs must be names of divergences, got function"):
        run(pipe, fs=[lambda t: t])
    found = run(pipe, fs=["kl", "kl"], seeds=[0, 0], strengths=[1.0])
    assert len(found.points) == 1


def test_a_cache_knows_other_pipes_and_functions_apart(pipe, tmp_path) -> None:
    small = {"fs": ["kl"], "seeds": 1, "strengths": [1.0], "cache": tmp_path, "steps": 2}
    first = run(pipe, **small)
    assert run(build_tiny_pipe(), **small) == first
    files = len(list(tmp_path.iterdir()))
    other = build_tiny_pipe()
    with torch.no_grad():
        other.unet.conv_in.weight[0, 0, 0, 0] += 1
    assert run(other, **small).points != first.points
    run(build_tiny_pipe().to(torch.bfloat16), **small)
    assert len(list(tmp_path.iterdir())) == files + 4

    def own(pipe):
        return 0.5, 0.5

    with pytest.raises(ValueError, match="give it an attribute cache_key"):
        run(build_tiny_pipe(), **small, measure=own)
    own.cache_key = "half"
    assert run(build_tiny_pipe(), **small, measure=own).points[0].erased == 0.5


def test_what_is_kept_is_measured_though_nothing_is_retained(pipe) -> None:
    options = {"fs": ["kl"], "seeds": 1, "strengths": [1.0], "steps": 60, "trajectories": 12}
    free, held = (run(pipe, **options, retain_weight=w).points[0] for w in (0.0, 5.0))
    assert free.kept < held.kept


needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib"
)


@needs_matplotlib
def test_pictures(tmp_path) -> None:
    import matplotlib

    matplotlib.use("svg")
    found = points(("kl", 0, 1.0, 0.9, 0.5), ("kl", 1, 1.0, 0.9, 0.6), ("tv", 0, 1.0, 0.8, 0.6))
    plot_tradeoff(found, tmp_path / "tradeoff.png")
    plot_profiles(tmp_path / "profiles.png")
    for name in ("tradeoff.png", "profiles.png"):
        image = Image.open(tmp_path / name).convert("L")
        assert image.width > 600 and len(image.resize((64, 64)).getcolors(4096)) > 20
    assert matplotlib.get_backend() == "svg"  # the user's own


def test_without_matplotlib_the_fix_is_named(tmp_path, monkeypatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "diffusers-fdu\[plot\]"'):
        plot_profiles(tmp_path / "p.png")
