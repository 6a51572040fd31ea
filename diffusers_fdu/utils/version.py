"""Which version of this library runs."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("diffusers-fdu")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0+unknown"
