"""What an annotation allows: the known answers for each kind of value, and the words for it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Interval, Lt
from torch import nn

from mbrl.settings.memory import free_memory, require_memory, require_memory_of
from mbrl.settings.values import SettingError, describe, require_value

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Interval(gt=0, le=1)]


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (5, int, 5),
        (5.0, int, 5),
        (5e3, Count, 5000),
        (5, float, 5),
        (0.5, Share, 0.5),
        (1, Share, 1),
        (None, Count | None, None),
        ("a", str | None, "a"),
        (True, bool, True),
        ("full", Literal["fast", "full"], "full"),
        ([16, 32.0], Sequence[Count], [16, 32]),
        ([0.5, 1.0], tuple[float, float], [0.5, 1.0]),
        ({1: 2}.get(1), Any, 2),
        ("all", Sequence[str] | str, "all"),
    ],
)
def test_what_is_allowed_is_returned_with_whole_numbers_as_integers(value: Any, annotation: Any, result: Any) -> None:
    found = require_value(value, annotation, "a.b")
    assert found == result
    kinds = [type(item) for item in (found if isinstance(found, list) else [found])]
    assert kinds == [type(item) for item in (result if isinstance(result, list) else [result])]


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (2.5, int, "a.b=2.5 is not allowed: it must be a whole number"),
        (True, int, "a.b=true is not allowed: it must be a whole number"),
        ("5", int, "a.b='5' is not allowed: it must be a whole number"),
        (None, float, "a.b=null is not allowed: it must be a number"),
        (0, Count, "a.b=0 is not allowed: it must be a whole number, 1 or more"),
        (-1.0, Count | None, "a.b=-1 is not allowed: it must be a whole number, 1 or more or null"),
        (1e30, Share, "a.b=1e+30 is not allowed: it must be a number in (0, 1]"),
        (float("nan"), float, "a.b=nan is not allowed: it must be a number"),
        (float("inf"), int, "a.b=inf is not allowed: it must be a whole number"),
        (1, bool, "a.b=1 is not allowed: it must be true or false"),
        (5, str, "a.b=5 is not allowed: it must be text"),
        ("slow", Literal["fast", "full"], "a.b=slow is not allowed: it must be fast or full"),
        ("abc", Sequence[Count], "a.b=abc is not allowed: it must be a list, each a whole number, 1 or more"),
        ([16, 0], Sequence[Count], "a.b=[16,0] is not allowed: it must be a list, each a whole number, 1 or more"),
        (7, nn.Module, "a.b=7 is not allowed: it must be settings whose _target_ makes a Module"),
        (7, Callable[..., nn.Module], "a.b=7 is not allowed: it must be settings whose _target_ makes a Module"),
        (7, Mapping[str, int], "a.b=7 is not allowed: it must be settings by name, each a whole number"),
    ],
)
def test_what_is_not_allowed_is_one_line(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        require_value(value, annotation, "a.b")
    assert str(error.value) == message


def test_ranges_in_words() -> None:
    assert describe(Annotated[float, Gt(0)]) == "a number above 0"
    assert describe(Annotated[float, Lt(1)]) == "a number below 1"
    assert describe(Annotated[int, Interval(ge=0, le=2**32 - 1)]) == "a whole number in [0, 4294967295]"
    assert describe(Annotated[int, Interval(ge=0, le=10**12)]) == "a whole number in [0, 1e+12]"


def test_the_page_cache_of_a_container_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": "1000\n", "memory.current": "990\n", "memory.stat": "anon 90\nfile 900\nshmem 100\n"}
    files["memory.stat"] += "inactive_file 500\nactive_file 300\n"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("mbrl.settings.memory.GROUP", tmp_path)
    assert free_memory(torch.device("cpu")) == 810
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 1000


def test_memory_beyond_what_is_free_is_refused_with_both_sizes() -> None:
    cpu = torch.device("cpu")
    require_memory("a.b=1", 1, cpu)
    with pytest.raises(ValueError, match=r"a\.b=1 needs 1048576\.0 GiB of memory, and \d+\.\d GiB are free on cpu"):
        require_memory("a.b=1", 2**50, cpu)


def test_a_module_is_counted_without_being_allocated() -> None:
    cpu = torch.device("cpu")
    require_memory_of(lambda: nn.Linear(4, 4), "a.b", cpu)
    with pytest.raises(ValueError, match=r"a\.b has 1099513 million weights: training them needs 16384\.0 GiB"):
        require_memory_of(lambda: nn.Linear(2**20, 2**20), "a.b", cpu)
