"""A few of the faults of `python -m tests.faults`, each kind of them."""

import pytest

from tests.command import Command


@pytest.mark.process
def test_a_few_faults_of_each_kind_that_needs_no_run():
    _try("--agents", kinds=5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_few_faults_of_each_kind():
    _try(kinds=9)


def _try(*arguments: str, kinds: int) -> None:
    done = Command("--short", *arguments, program="tests.faults.__main__").wait(550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1 + kinds, "a heading and a line for each kind"
