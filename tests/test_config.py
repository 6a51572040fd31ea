from __future__ import annotations

import math

import pytest

from diffusers_fdu.settings import settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"steps": 1.5}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate must be positive or 'auto', got 'fast'"),
        ({"max_grad_norm": "auto"}, "max_grad_norm"),
        ({"alpha": 0}, "alpha must be positive or None, got 0"),
        ({"alpha": "x"}, "alpha must be positive or None, got 'x'"),
        ({"retain_weight": "x"}, "retain_weight"),
        ({"retain_weight": -1.0}, "retain_weight"),
        ({"early_stop": 1.0}, "early_stop"),
        ({"mixed_precision": "int8"}, "mixed_precision 'int8'"),
        ({"optimizer": "sgd"}, "optimizer 'sgd'"),
        ({"init": "pissa"}, "unknown init 'pissa': choose auto, lora, closed_form"),
        ({"seed": "x"}, "seed must be an integer, got 'x'"),
        ({"retain": "fox"}, "retain must be a list or None, got 'fox'"),
        ({"target_modules": "to_k"}, "target_modules must be a list or None, got 'to_k'"),
        ({"compile": 1}, "compile must be True or False, got 1"),
    ],
)
def test_bad_values_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        settings(options)


def test_unknown_options_name_the_nearest_or_all() -> None:
    with pytest.raises(TypeError, match="'learning_rat': did you mean learning_rate"):
        settings({"learning_rat": 1.0})
    with pytest.raises(TypeError, match="'xyz': choose rank, .*compile"):
        settings({"xyz": 1.0})
