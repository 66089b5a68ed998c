"""What tests/conftest.py decides for all tests."""

import io
import sys

import pytest

from tests.conftest import PROCESS_BYTES, Budget, asks_for_gpu, pytest_xdist_auto_num_workers


def test_a_failure_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    text = "E  assert 2 == 3\n\ntests/test_x.py:7: AssertionError"
    for outcome in ("passed", "failed"):
        name = f"tests/test_x.py::test_{outcome}"
        report = pytest.TestReport(name, ("tests/test_x.py", 1, ""), {}, outcome, text, "call")  # type: ignore[arg-type]
        Budget().pytest_runtest_logreport(report)
    assert sys.__stderr__.getvalue() == "\ntests/test_x.py::test_failed: tests/test_x.py:7: AssertionError\n"


@pytest.mark.parametrize(("cores", "memory", "processes"), [(2, 20, 2), (8, 3.5, 3), (2, 0.4, 1), (1, 20, 1)])
def test_processes_fit_the_usable_cores_and_the_memory(
    cores: int, memory: float, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbrl.processes.usage.usable_cores", lambda: cores)
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: int(memory * PROCESS_BYTES))
    assert pytest_xdist_auto_num_workers() == processes


def test_pytest_xdist_asks_this_file(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.processes.usage.usable_cores", lambda: 3)
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**40)
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=pytestconfig) == 3


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ("-m gpu tests/gpu", True), ("-q -m gpu", True), ("tests/gpu/test_cuda.py", True), ("", False),
        ("/home/gpu1/mbrl/tests", False), ("-k not-gpu", False), ("--basetemp /tmp/tests/gpu tests", False),
        ("-m not-gpu", False),
    ],
)  # fmt: skip
def test_only_tests_of_a_gpu_see_it(arguments: str, asked: bool) -> None:
    assert asks_for_gpu([each.replace("not-", "not ") for each in arguments.split()]) is asked
