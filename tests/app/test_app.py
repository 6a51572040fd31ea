"""The page: what it draws, keeps and gives back; test_app_browser.py has the whole of it."""

from __future__ import annotations

import importlib
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import FAMILIES, Family
from PIL import Image
from typer.testing import CliRunner

import diffusers_fdu
from diffusers_fdu import cli
from diffusers_fdu.adapters import lora as adapters
from diffusers_fdu.adapters.stacking import at_strengths
from diffusers_fdu.app import server
from diffusers_fdu.app.renderer import KEPT, GenerationRequest, Renderer
from diffusers_fdu.app.server import build_page, serve, unlearns
from diffusers_fdu.cli import adapters as commands
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.pipelines.denoiser import denoiser_names

REQUEST = GenerationRequest("a dog", "", 3, 2, 5.0)
FORM = {"prompt": "a dog", "negative_prompt": "", "seed": 0, "steps": 2, "guidance_scale": 5.0}


def add(model: torch.nn.Module, name: str, layers: list[str] | None = None) -> None:
    """An adapter with random weights, frozen, active beside the others."""
    before = adapters.snapshot(model)
    config = adapters.lora_config(model, 4, None, layers)
    generator = torch.Generator().manual_seed(len(name))
    for parameter in adapters.attach(model, name, config, seed=0):
        torch.nn.init.normal_(parameter, generator=generator)
    adapters.finish(model, name, before)


def picture(pipe, guided="guidance_scale", **more) -> Image.Image:
    """What a plain call of the pipeline draws of `REQUEST`."""
    arguments = {"num_inference_steps": 2, "output_type": "pil", guided: 5.0, **more}
    output = pipe(prompt="a dog", generator=torch.Generator().manual_seed(3), **arguments)
    return output.images[0] if hasattr(output, "images") else output.frames[0][0]


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


@pytest.fixture
def calls(pipe) -> list[int]:
    """One entry for each picture that is drawn."""
    drawn: list[int] = []
    handle = pipe.vae.decoder.register_forward_hook(lambda *_: drawn.append(1))
    yield drawn
    handle.remove()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_pictures_are_those_of_the_pipeline(family: Family) -> None:
    pipe = family.build()
    more = family.run | ({"num_frames": 1} if "num_frames" in family.run else {})
    more.pop("negative_prompt", None)
    # Without a negative prompt, Qwen-Image takes no notice of its guidance.
    hidden = {"negative_prompt": ""} if family.guided == "true_cfg_scale" else {}
    before = picture(pipe, family.guided, **more, **hidden)
    for i, component in enumerate(denoiser_names(pipe)):
        add(getattr(pipe, component), f"adapter-{i}")
    renderer = Renderer(pipe, None, more)
    halves = [0.5] * len(renderer.names)
    assert same(renderer.draw(REQUEST, [0.0] * len(halves)), before)
    unlearned = renderer.draw(REQUEST, halves)
    assert not same(unlearned, before)
    eval(renderer.code(halves), {"pipe": pipe, "diffusers_fdu": diffusers_fdu})
    assert same(picture(pipe, family.guided, **more, **hidden), unlearned)


def facts(pipe) -> list:
    """Everything about adapters that a call of the page might change."""
    layers = adapters.tuner_layers(pipe.unet)
    return [
        [(list(layer.active_adapters), dict(layer.scaling)) for layer in layers],
        [(name, parameter.requires_grad) for name, parameter in pipe.unet.named_parameters()],
        [(name, module.training) for name, module in pipe.unet.named_modules()],
    ]


def test_strengths_and_flags_are_given_back(pipe) -> None:
    add(pipe.unet, "one")
    add(pipe.unet, "two", ["attn2.to_k"])
    add(pipe.unet, "off", ["attn2.to_k"])
    pipe.set_adapters(["one", "two"], [0.7, -0.3])
    layer = adapters.tuner_layers(pipe.unet)[0]
    layer.scaling["one"] = 0.1  # one layer has a strength of its own
    pipe.unet.train()
    next(p for n, p in pipe.unet.named_parameters() if "one" in n).requires_grad_(True)
    before = facts(pipe)
    renderer = Renderer(pipe)
    assert renderer.names == ["one", "two", "off"]
    renderer.draw(REQUEST, [1.0, 0.0, 1.5])
    assert facts(pipe) == before
    with pytest.raises(KeyError), at_strengths(pipe, {"one": 0.0, "off": 1.0}):
        assert facts(pipe) != before
        raise KeyError
    assert facts(pipe) == before


def test_the_base_is_drawn_once(pipe, calls) -> None:
    add(pipe.unet, "one")
    renderer = Renderer(pipe)
    form = FORM | {"prompt": " a dog ", "negative_prompt": None, "seed": 3.0}

    def press(*strengths, **changed) -> list:
        return list(renderer.draw_both(form | changed, strengths))

    (first, nothing, _), (base, unlearned, told) = press(1.0)
    assert first is base and nothing is None and told == "" and len(calls) == 2
    *_, (again, other, _) = press(0.5)  # a slider moved: one picture
    assert again is base and len(calls) == 3 and not same(other, unlearned)
    *_, (again, back, _) = press(1.0)
    assert again is base and back is unlearned and len(calls) == 3
    *_, (again, zero, _) = press(0.0)
    assert again is zero is base and len(calls) == 3
    changes = ({"seed": 4}, {"steps": 3}, {"guidance_scale": 4}, {"negative_prompt": "a red cat"})
    for i, change in enumerate(changes):
        *_, (other, _, _) = press(1.0, **change)
        assert len(calls) == 5 + 2 * i and not same(other, base)


def test_few_pictures_are_kept_and_the_base_among_them(pipe, monkeypatch) -> None:
    add(pipe.unet, "one")
    renderer, drawn = Renderer(pipe), []
    monkeypatch.setattr(renderer, "_picture", lambda request: drawn.append(request) or object())
    base = renderer.draw(REQUEST, [0.0])
    for i in range(3 * KEPT):
        renderer.draw(REQUEST, [0.01 * (i + 1)])
        assert renderer.draw(REQUEST, [0.0]) is base
    assert renderer._drawn.cache_info().currsize == KEPT
    renderer.draw(REQUEST, [0.01])  # the oldest is gone
    assert len(drawn) == 3 * KEPT + 2


def test_one_picture_at_a_time(pipe, monkeypatch) -> None:
    add(pipe.unet, "one")
    renderer, inside, seen = Renderer(pipe), [], []

    def slow(request) -> object:
        inside.append(1)
        seen.append((len(inside), adapters.strengths(pipe.unet, ["one"])["one"]))
        time.sleep(0.02)
        inside.pop()
        return object()

    monkeypatch.setattr(renderer, "_picture", slow)
    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    with ThreadPoolExecutor(len(values)) as pool:
        list(pool.map(lambda value: renderer.draw(REQUEST, [value]), values))
    assert sorted(seen) == [(1, value) for value in values]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prompt": " \n"}, "The prompt is empty"),
        ({"prompt": None}, "The prompt is empty"),
        ({"seed": 1.5}, "The seed must be a whole number"),
        ({"seed": -1}, "The seed must be between 0"),
        ({"seed": 2**70}, "The seed must be between 0"),
        ({"steps": None}, "The number of steps must be a whole number"),
        ({"steps": 0}, "The number of steps must be at least 1"),
        ({"steps": 1001}, "1001 cannot be larger than"),  # the scheduler's own words
        ({"guidance_scale": None}, "The guidance must be a number"),
        ({"guidance_scale": float("nan")}, "The guidance must be a number"),
    ],
)
def test_what_is_wrong_is_told(pipe, changed, told) -> None:
    add(pipe.unet, "one")
    *_, (base, unlearned, message) = Renderer(pipe).draw_both(FORM | changed, [1.0])
    assert base is None and unlearned is None and told in message


def test_a_pipeline_that_fails(pipe, monkeypatch, caplog) -> None:
    add(pipe.unet, "one")
    renderer, before = Renderer(pipe), facts(pipe)
    broken = RuntimeError("out of memory <script>alert(1)</script> " + "x" * 9999)

    def fail(*_) -> None:
        raise broken

    handle = pipe.unet.register_forward_hook(fail)
    *_, (base, unlearned, message) = renderer.draw_both(FORM, [1.0])
    assert base is None and unlearned is None
    assert "RuntimeError: out of memory &lt;script&gt;" in message and len(message) < 1000
    assert caplog.records[-1].exc_info[1] is broken  # whoever runs the page sees where
    assert facts(pipe) == before
    handle.remove()
    *_, (base, unlearned, message) = renderer.draw_both(FORM, [1.0])
    assert base is not None and unlearned is not None and not message


def test_adapters_that_cannot_be_shown(pipe) -> None:
    with pytest.raises(ValueError, match="no adapter on the pipe"):
        Renderer(pipe)
    with pytest.raises(ValueError, match="no adapter 'two' on the pipe: there are none"):
        Renderer(pipe, ["two"])
    add(pipe.unet, "one")
    with pytest.raises(ValueError, match="no adapter 'two' on the pipe: there are one"):
        Renderer(pipe, ["one", "two"])
    with pytest.raises(TypeError, match="list of adapter names, not 'one'"):
        Renderer(pipe, "one")
    pipe.disable_lora()
    with pytest.raises(ValueError, match="adapters are off"):
        Renderer(pipe)


def test_other_adapters_stay_and_are_named_in_the_code(pipe) -> None:
    for name in ("one", "art", "off"):
        add(pipe.unet, name)
    pipe.set_adapters(["one", "art"], [1.0, 0.6])
    renderer = Renderer(pipe, ["one"])
    pipe.set_adapters(["art"], [0.6])
    art = picture(pipe)
    assert same(renderer.draw(REQUEST, [0.0]), art)
    assert renderer.code([0.1 + 0.2]) == 'pipe.set_adapters(["art", "one"], [0.6, 0.3])'


EMPTY = "what the empty prompt gives"


@pytest.mark.parametrize(
    ("concepts", "text"),
    [
        (None, ""),
        (["dog"], ""),
        ([{"target": "dog", "anchor": "cat"}], "unlearns dog → cat, f = kl"),
        ([{"target": "dog", "anchor": None}], f"unlearns dog → {EMPTY}, f = kl"),
        ([{"target": "dog", "anchor": {"scale": 1.0}}], "unlearns dog → ?, f = kl"),
        (
            [{"target": "a"}, {"target": "<b>![x](//y)"}],
            f"unlearns a → {EMPTY}, ‹b›!(x)(//y) → {EMPTY}",
        ),
    ],
)
def test_what_an_adapter_unlearns(concepts, text) -> None:
    f = {"f": "kl"} if "f = kl" in text else {}
    assert unlearns({"concepts": concepts, **f}) == text


def test_without_gradio(pipe, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    importlib.reload(server)  # which needs no gradio
    with pytest.raises(ImportError, match=r'pip install "diffusers-fdu\[app\]"'):
        server.build_page(pipe)


def test_fields_are_filled_in() -> None:
    pytest.importorskip("gradio")

    def fields(pipe, **options) -> dict:
        shown = build_page(pipe, **options)
        assert not shown.analytics_enabled
        return {b.label: b for b in shown.blocks.values() if getattr(b, "label", None)}

    pipe = load_emoji_pipeline()
    add(pipe.unet, "forget-dog")
    found = fields(pipe)
    assert (found["Steps"].value, found["Guidance"].value) == (25, 4.0)
    slider = found["forget-dog"]
    assert (slider.minimum, slider.maximum, slider.value) == (0, 1.5, 1.0)
    recipe = {"concepts": [{"target": "dog"}], "pipeline_kwargs": {"guidance_scale": 3.0}}
    found = fields(pipe, recipes={"forget-dog": recipe}, steps=7)
    assert (found["Steps"].value, found["Guidance"].value) == (7, 3.0)
    assert found["forget-dog"].info == f"unlearns dog → {EMPTY}"
    assert fields(pipe, guidance_scale=2.0)["Guidance"].value == 2.0
    assert fields(pipe)["Negative prompt"].visible
    klein = FAMILIES["flux2_klein"].build()
    add(klein.transformer, "one")
    assert not fields(klein)["Negative prompt"].visible


def test_a_port_that_is_taken(pipe) -> None:
    pytest.importorskip("gradio")
    add(pipe.unet, "one")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be used"):
            serve(pipe, port=port, block=False)


def test_the_command_refuses_at_once(monkeypatch, tmp_path) -> None:
    def told() -> str:
        command = ["app", "--model", "emoji", "--adapters", str(tmp_path)]
        return str(CliRunner().invoke(cli.app, command).exception)

    monkeypatch.setattr(commands, "load_pipeline", None)  # nothing is loaded
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "diffusers-fdu[app]"' in told()
    monkeypatch.setitem(sys.modules, "gradio", sys)  # anything but None
    assert str(tmp_path) in told()
