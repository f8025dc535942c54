"""What a program wishes is refused where the command line would refuse it, and in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from localmoe.app import checks, wish_checks
from localmoe.cli import options
from localmoe.errors import UsageError
from localmoe.planning.plan import ExpertsOn, Wishes


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": "4"}, {"threads": 0}, {"threads": 10**9}, {"threads": True}, {"threads": 2.0},
        {"context": "8k"}, {"context": 10**9}, {"context": -1}, {"gpu_layers": "all"},
        {"gpu_layers": -2}, {"n_cpu_moe": -1}, {"ram": "8"}, {"ram": -5}, {"ram": 0},
        {"vram": math.nan}, {"batch": 0}, {"batch": "x"}, {"cache": "foo"}, {"cache": None},
        {"cache_ram": -1}, {"type_k": "abc"}, {"type_v": 8}, {"experts": 0}, {"experts": -1},
        {"prefer_cached": 5}, {"prefer_cached": math.nan}, {"prefer_cached": "a"},
        {"experts_on": "ram"}, {"experts_on": (ExpertsOn("tape"),)}, {"experts_on": None},
        {"overrides": ["x"]}, {"overrides": (("[", "CPU"),)}, {"overrides": (("exps", 1),)},
    ],
)  # fmt: skip
def test_a_wrong_wish_is_named(wrong: dict[str, Any]) -> None:
    """Never a raw error, an engine that dies, or a value that is taken and means nothing."""
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^{name} is ") as caught:
        wish_checks.checked(Wishes(**wrong))
    assert len(caught.value.message) < 200


def test_right_wishes_pass_as_they_are() -> None:
    """At their limits, too; a context beside them is one of them."""
    wishes = Wishes(
        threads=1, gpu_layers=-1, n_cpu_moe=0, ram=1 << 33, vram=0, batch=1, cache="page",
        cache_ram=1, type_k="q8_0", experts=1, prefer_cached=0.0,
        experts_on=(ExpertsOn("ram", ((0, 3),)),), overrides=(("blk.3.*exps", "CPU"),),
    )  # fmt: skip
    assert wish_checks.checked(wishes) is wishes
    assert wish_checks.checked(Wishes(), 4096) == Wishes(context=4096)
    for wrong in ({"threads": 1}, None, Wishes):
        with pytest.raises(UsageError, match=r"^wishes is of type Wishes"):
            wish_checks.checked(wrong)


def test_the_choices_are_the_command_lines() -> None:
    """Both front ends take the same words."""
    assert (wish_checks.KV_TYPES, wish_checks.CACHES) == (options.KV_TYPES, options.CACHES)
    assert wish_checks.REPACKING == options.REPACKING


@pytest.mark.parametrize("wrong", [5, b"x", "", "  ", ["nano"], None, True])
def test_what_is_no_name(wrong: object) -> None:
    """An empty name is not the bundled model."""
    with pytest.raises(UsageError, match=r"^name is the name of a model"):
        checks.model_name(wrong)


@pytest.mark.parametrize(
    "wrong", [math.nan, {"const": math.inf}, {1, 2}, b"{}", {"enum": [object()]}]
)
def test_a_schema_that_is_no_json(wrong: object) -> None:
    """Its answer would be none either."""
    with pytest.raises(UsageError, match=r"^schema is no JSON"):
        checks.schema(wrong)


def test_a_schema_of_python_is_one_of_json() -> None:
    """Numbers as names, and tuples, as the json module writes them."""
    assert checks.schema({"enum": ("a", "b"), 1: {}}) == {"enum": ["a", "b"], "1": {}}


def test_a_number_is_a_number_whoever_made_it() -> None:
    """NumPy's too, as a program has them from its random generators."""
    given = {"seed": np.int64(3), "temperature": np.float32(0.5), "top_k": np.uint8(7)}
    assert checks.sampling_values(given) == {"seed": 3, "temperature": 0.5, "top_k": 7}


@pytest.mark.parametrize(
    ("name", "wrong", "wanted"),
    [
        ("seed", 2**40, "from 0 to 4,294,967,295, or None"),
        ("max_tokens", 10**12, "from 1 to 2,147,483,647, or None"),
        ("top_k", -1, r"from 0 \(all\) to 2,147,483,647"),
        ("repeat_penalty", 0, "from 0.01 to 100"),
        ("repeat_last_n", 2**21, r"from 0 \(none\) to 1,048,576"),
    ],
)
def test_a_refused_number_hears_its_bounds(name: str, wrong: int, wanted: str) -> None:
    """In a program's words: what a chat calls random or none is None there."""
    with pytest.raises(UsageError, match=wanted):
        checks.checked(name, wrong)


def test_progress_is_called_or_refused_at_once() -> None:
    """Not when the first megabyte has been read."""
    with pytest.raises(UsageError, match="progress is a function, not None"):
        checks.function("progress", None)
