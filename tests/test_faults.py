"""A few of the faults of `python -m tests.faults`, each kind of them."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


@pytest.mark.timeout(600)
def test_a_few_faults_of_each_kind():
    done = subprocess.run([sys.executable, "-m", "tests.faults", "--short"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 5, "a heading and a line for each kind"
