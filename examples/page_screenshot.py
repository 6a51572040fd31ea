"""Draw docs/page.png: the page of the embedded model without "dog", in a real browser.

    pip install "diffusers-fdu[app]" playwright
    python examples/page_screenshot.py --output docs/page.png

needs Chromium, and takes about two minutes on one core, most of them for unlearning.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import sync_playwright

from diffusers_fdu import FDUnlearner
from diffusers_fdu.app.server import serve
from diffusers_fdu.emoji.loading import load_emoji_pipeline

PROMPT, SEED = "a dog emoji in fluent style on a blue background", "5"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def take(address: str, output: Path, width: int, dark: bool) -> None:
    """A picture of the page with both pictures drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=FLAGS
        )
        page = browser.new_page(
            viewport={"width": width, "height": 590}, color_scheme="dark" if dark else "light"
        )
        page.goto(address)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_label("Seed", exact=True).fill(SEED)
        page.click("#draw")
        page.wait_for_selector("#unlearned img", timeout=120_000)
        page.wait_for_timeout(500)  # what said how far it is fades out
        page.screenshot(path=output, full_page=True)
        browser.close()


def main(
    output: Annotated[Path, typer.Option(help="The PNG.")] = Path("docs/page.png"),
    width: Annotated[int, typer.Option(help="Of the window.")] = 1200,
    dark: Annotated[bool, typer.Option("--dark", help="In a browser that is dark.")] = False,
) -> None:
    """Unlearn, show the page, take its picture."""
    unlearner = FDUnlearner(load_emoji_pipeline(), {"guidance_scale": 4.0})
    pipe = unlearner.unlearn("dog", "cat", f="kl", adapter_name="no-dog")
    page = serve(pipe, recipes={"no-dog": unlearner.recipe}, port=None, block=False)
    take(page.local_url, output, width, dark)
    page.close()


if __name__ == "__main__":
    typer.run(main)
