"""The page as its users have it: the command, a browser, and no way out of this machine."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_app import same

from diffusers_fdu import FDUnlearner
from diffusers_fdu.emoji.loading import load_emoji_pipeline

WATCHED = """
import socket, sys
names, connect = socket.getaddrinfo, socket.socket.connect
def told(host):
    if host not in (None, "127.0.0.1", "localhost", "::1", "0.0.0.0"):
        print("OUTSIDE", host, flush=True)
def looked_up(host, *args, **kwargs):
    told(host)
    return names(host, *args, **kwargs)
def connected(self, address):
    told(address[0] if isinstance(address, tuple) else None)
    return connect(self, address)
socket.getaddrinfo, socket.socket.connect = looked_up, connected
from diffusers_fdu.cli import main
main()
"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def driver():
    """Skips before anything is trained."""
    pytest.importorskip("gradio", reason='needs gradio: pip install "diffusers-fdu[app]"')
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    return api.sync_playwright


@pytest.fixture(scope="module")
def adapter(driver, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "no-dog"
    unlearner = FDUnlearner(
        load_emoji_pipeline(), {"guidance_scale": 4.0}, steps=5, trajectories=4
    )
    unlearner.unlearn("dog", "cat", f="kl")
    unlearner.save(folder)
    return folder


@pytest.fixture
def served(adapter, tmp_path) -> Iterator[tuple[str, Path]]:
    """The command at work: the page's address, and what it writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    command = ["app", "--model", "emoji", "--adapters", str(adapter), "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *command],
            stdout=out,
            stderr=out,
            env={**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)},
        )
    try:
        ready = f"the page is at http://127.0.0.1:{port}/"
        until = time.monotonic() + 60
        while ready not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield ready.split()[-1], log
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def browser(driver) -> Iterator:
    with driver() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


def test_in_a_browser(browser, served) -> None:
    address, log = served
    tab = browser.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)

    def fill(label: str, text: str) -> None:
        tab.get_by_label(label, exact=True).fill(text)

    def draw() -> list[Image.Image]:
        """Both pictures, once the second is another than before."""
        old = tab.evaluate(source := "document.querySelector('#unlearned img')?.src")
        tab.click("#draw")
        tab.wait_for_function(f"old => {source} && {source} !== old", arg=old, timeout=30_000)
        shown = [tab.get_attribute(f"#{name} img", "src") for name in ("base", "unlearned")]
        bodies = [tab.request.get(address).body() for address in shown]
        return [Image.open(io.BytesIO(body)).convert("RGB") for body in bodies]

    tab.click("#draw")
    told = tab.wait_for_selector("#message [role=alert]")
    assert "The prompt is empty" in told.inner_text()
    assert "unlearns dog → cat (object), f = kl" in tab.inner_text("#strength-0")

    fill("Prompt", "a dog emoji in noto style")
    fill("Seed", "3")
    fill("Steps", "6")
    base, unlearned = draw()
    assert tab.query_selector("#message [role=alert]") is None
    assert base.size == (64, 64) and not same(base, unlearned)
    assert 'set_adapters(["forget-dog"], [1.0])' in tab.inner_text("#code")
    plain = load_emoji_pipeline()
    plain.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    known = plain(
        "a dog emoji in noto style", num_inference_steps=6, guidance_scale=4.0, generator=generator
    )
    assert same(base, known.images[0])

    slider = tab.locator("#strength-0 input[type=range]")
    slider.focus()
    tab.keyboard.press("Home")
    tab.wait_for_function("document.querySelector('#code').innerText.includes('[0.0]')")
    zero = draw()
    assert same(zero[0], base) and same(zero[1], base)
    outside = [u for u in asked if not u.startswith((address, "data:", "blob:"))]
    assert not outside and "OUTSIDE" not in log.read_text()
