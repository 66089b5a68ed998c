"""An agent whose class and configuration are the user's own: trained, refused where nobody allowed it, evaluated."""

from pathlib import Path

import pytest

from mbrl.run_folder.config import load_config
from tests.command import Done, run_command
from tests.test_training import TOY

pytestmark = pytest.mark.process

POLICY = '''
from policies.random import RandomPolicy

class Mine(RandomPolicy):
    """Nothing but a name of its own."""
'''
AGENT = """
_target_: mbrl.agents.agent.Agent
name: mine
pixels: true
n_step: 1
policy: {_target_: mine.Mine}
batch_size: 1
updates_per_step: 0.0
learning_starts: 0
real_ratio: 1.0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "mine.py").write_text(POLICY)
    (home / "settings" / "agent").mkdir(parents=True)
    (home / "settings" / "agent" / "mine.yaml").write_text(AGENT)
    return home


def mbrl(home: Path, *arguments: str) -> Done:
    return run_command(*arguments, environment={"PYTHONPATH": str(home)})


def test_a_run_may_name_the_classes_that_the_user_allows(home):
    settings = [setting for setting in TOY if not setting.startswith("agent.")]
    trained = mbrl(
        home, "train", "--config-dir", str(home / "settings"), "agent=mine", f"run_dir={home / 'run'}", *settings
    )
    assert trained.returncode == 0, trained.stderr
    with pytest.raises(ValueError, match=r"agent\.policy\._target_ names mine\.Mine, .* give --config-dir DIR"):
        load_config(home / "run")
    evaluated = mbrl(home, "evaluate", str(home / "run"), "--episodes", "1", "--config-dir", str(home / "settings"))
    assert evaluated.returncode == 0 and "success" in evaluated.stdout, evaluated.stderr
