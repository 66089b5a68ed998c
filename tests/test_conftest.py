"""What tests/conftest.py decides for all tests."""

import io
import sys

import pytest

from tests.conftest import Budget


def test_a_failure_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    text = "E  assert 2 == 3\n\ntests/test_x.py:7: AssertionError"
    for outcome in ("passed", "failed"):
        name = f"tests/test_x.py::test_{outcome}"
        report = pytest.TestReport(name, ("tests/test_x.py", 1, ""), {}, outcome, text, "call")  # type: ignore[arg-type]
        Budget().pytest_runtest_logreport(report)
    assert sys.__stderr__.getvalue() == "\ntests/test_x.py::test_failed: tests/test_x.py:7: AssertionError\n"
