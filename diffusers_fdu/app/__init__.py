"""A page for the browser: the base model beside the unlearned one, the same seed, any strength.

    serve(FDUnlearner(pipe).unlearn("Snoopy", "dog"))

Needs gradio: pip install "diffusers-fdu[app]".
"""

from .server import build_page, check_gradio, serve

__all__ = ["build_page", "check_gradio", "serve"]
