"""Classes that a configuration names: each belongs at its place, and nothing else is ever called."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mbrl.errors import UserError
from mbrl.settings.annotations import forwards_to
from mbrl.targets import check, make, names_in
from policies.base import Policy
from worldmodel.base import WorldModel

CALLED: list[str] = []


def danger() -> None:
    CALLED.append("danger")


def factory(size: int) -> nn.Module:
    return nn.Linear(size, 1)


class Part(nn.Module):
    def __init__(
        self,
        inner: nn.Module | None = None,
        *,
        make_inner: Callable[[int], nn.Module] | None = None,
        optimizer: Callable[..., Any] | None = None,
        size: int = 1,
    ) -> None:
        super().__init__()
        self.inner = make_inner(2) if make_inner is not None else inner
        self.size = size


HERE = "tests.test_targets"
PART = {"_target_": f"{HERE}.Part"}


def test_parts_are_built_with_what_is_in_them():
    inner = {"_target_": f"{HERE}.Part", "size": 3}
    assert make({**PART, "inner": inner}, nn.Module).inner.size == 3
    made = make({**PART, "make_inner": {"_target_": f"{HERE}.factory", "_partial_": True}}, nn.Module)
    assert made.inner.in_features == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "os.getcwd"}, r"agent\._target_: os\.getcwd is no class or function of os"),
        ({"_target_": f"{HERE}.danger"}, r"tests\.test_targets\.danger makes no Module"),
        ({"_target_": f"{HERE}.Missing"}, r"there is no tests\.test_targets\.Missing"),
        ({"_target_": "nowhere.at.All"}, r"there is no nowhere\.at\.All"),
        ({"_target_": "policies.sac.partial"}, r"is no class or function of policies"),
        ({"_target_": "worldmodel.tensor_file.torch.load"}, r"there is no worldmodel\.tensor_file\.torch\.load"),
        ({"_target_": 7}, "there is no 7"),
        ({"_target_": "mbrl.tour.run"}, r"there is no mbrl\.tour\.run"),  # whose import trains an agent
        ({}, r"agent names no class: give agent\._target_"),
        ({**PART, "inner": {"_target_": f"{HERE}.danger"}}, r"agent\.inner\._target_: .*danger makes no Module"),
        ({**PART, "inner": {"_target_": "os.getcwd"}}, r"agent\.inner\._target_: os\.getcwd is no class"),
        ({**PART, "make_inner": {"_target_": f"{HERE}.danger", "_partial_": True}}, r"agent\.make_inner\._target_"),
        ({**PART, "size": {"_target_": f"{HERE}.danger"}}, r"agent\.size\._target_: .*danger makes no int"),
        ({**PART, "size": [{"_target_": f"{HERE}.danger"}]}, r"agent\.size\[0\]\._target_: no class can be named"),
        ({**PART, "size": {"a": {"_target_": f"{HERE}.danger"}}}, r"agent\.size\.a\._target_: no class can be named"),
    ],
)  # fmt: skip
def test_what_does_not_belong_is_refused_before_anything_is_called(settings, message):
    with pytest.raises(ValueError, match=message):
        make(settings, nn.Module, place="agent")
    assert not CALLED


def test_a_policy_is_no_world_model():
    settings = {"_target_": "policies.random.RandomPolicy"}
    check(settings, Policy, "agent.policy")
    with pytest.raises(ValueError, match=r"agent\.world_model\._target_: policies\.random\.RandomPolicy makes no"):
        check(settings, WorldModel, "agent.world_model")


def test_the_names_in_a_users_own_folder(tmp_path: Path):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "mine.yaml").write_text("policy: {_target_: mine.Policy, net: {_target_: mine.net}}\n")
    assert names_in(tmp_path) == {"mine.Policy", "mine.net"}
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        names_in(tmp_path / "absent")


class Inner:
    def __init__(self, size: int = 1, *, width: int = 2, depth: int = 3) -> None:
        self.size, self.width, self.depth = size, width, depth


@forwards_to(Inner)
def make_inner(name: str, *, depth: int = 7, **settings: Any) -> Inner:
    return Inner(depth=depth, **settings)


def takes_any(**settings: Any) -> Inner:
    return Inner(**settings)


def test_a_function_that_forwards_its_settings_is_checked_by_the_arguments_of_the_class():
    parameters = inspect.signature(make_inner).parameters
    assert {name: p.default for name, p in parameters.items() if name != "name"} == {"depth": 7, "width": 2}
    settings = {"_target_": f"{HERE}.make_inner", "name": "a"}
    assert make({**settings, "width": 5}, Inner).width == 5
    with pytest.raises(UserError, match=r"env\.widht: .* has no such argument; nearest: width"):
        check({**settings, "widht": 5}, Inner, "env")
    with pytest.raises(UserError, match=r"env\.size: "):  # positional arguments are not forwarded
        check({**settings, "size": 5}, Inner, "env")


def test_only_a_users_own_target_may_take_any_setting(monkeypatch: pytest.MonkeyPatch):
    settings = {"_target_": f"{HERE}.takes_any", "widht": 5}
    check(settings, Inner, "env")
    monkeypatch.setattr(takes_any, "__module__", "mbrl.envs.mine")
    with pytest.raises(UserError, match=r"env\.widht: .* has no such argument"):
        check(settings, Inner, "env")
