"""A few of the faults of `python -m tests.faults`, each kind of them."""

import pytest

from tests.command import Command

pytestmark = pytest.mark.process


@pytest.mark.timeout(600)
def test_a_few_faults_of_each_kind():
    done = Command("--short", program="tests.faults.__main__").wait(550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 10, "a heading and a line for each kind"
