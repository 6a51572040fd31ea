"""`python -m diffusers_fdu`: the command line."""

from .cli import main

main()
