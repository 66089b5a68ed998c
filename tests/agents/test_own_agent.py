"""An agent whose class and configuration are the user's own: trained, refused where nobody allowed it, evaluated."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import mbrl
from mbrl.cli.configured import print_help
from mbrl.compose import check_overrides, composed
from mbrl.errors import UserError
from mbrl.run_folder.config import load_config
from mbrl.run_folder.provenance import read_starts
from mbrl.targets import check, names_in
from mbrl.training import check as check_training
from policies.base import Policy
from tests.command import Done, run_command
from tests.readmes import ROOT, blocks
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


def shown(readme: str, language: str) -> list[str]:
    """The blocks of one language in a README."""
    return [block.text for block in blocks(ROOT / readme) if block.language == language]


def place(home: Path, agent: str, monkeypatch: pytest.MonkeyPatch, **modules: str) -> Path:
    """A folder for --config-dir with the agent `mine`, and modules that Python finds."""
    (home / "settings" / "agent").mkdir(parents=True)
    (home / "settings" / "agent" / "mine.yaml").write_text(agent)
    for name, text in modules.items():
        (home / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(home)
    return home / "settings"


def test_a_policy_of_another_kind_needs_the_complete_agent_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = POLICY + "    def __init__(self, hidden_size, **specs):\n        super().__init__(**specs)\n"
    partial, complete = shown("mbrl/README.md", "yaml")
    own = place(tmp_path, complete, monkeypatch, my_policy=policy)
    check_training(composed(["agent=mine", "env=toy"], config_dir=own))
    (own / "agent" / "mine.yaml").write_text(partial)
    (tmp_path / "my_policy.py").write_text(POLICY)
    monkeypatch.delitem(sys.modules, "my_policy")
    with pytest.raises(UserError, match=r"agent\.policy\.\w+: my_policy\.Mine has no such argument"):
        check_training(composed(["agent=mine", "env=toy"], config_dir=own))


def test_the_world_model_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = (text for text in shown("worldmodel/README.md", "python") if "class Mine" in text)
    (agent,) = shown("worldmodel/README.md", "yaml")
    own = place(tmp_path, agent, monkeypatch, my_model=model)
    (own / "worldmodel").mkdir()
    (own / "worldmodel" / "mine.yaml").write_text("_target_: my_model.Mine\nlearning_rate: 1.0e-3\n")
    (command,) = shown("worldmodel/README.md", "bash")
    settings = [word for word in shlex.split(command) if re.match(r"[a-z].*=", word)]
    small = ["total_env_steps=40", "eval.every=40", "agent.model_updates_first=2", "video=false"]
    small += ["agent.model_error=null", "agent.imagination.rollouts=4", "agent.imagination.horizon=3"]
    run = mbrl.train([*settings, *small, f"run_dir={tmp_path / 'run'}"], config_dir=own)
    assert run.imagine(rollouts=2, horizon=3)["next", "state"].shape == (2, 3, 4)


def mbrl_command(home: Path, *arguments: str) -> Done:
    return run_command(*arguments, environment={"PYTHONPATH": str(home)})


def test_a_run_may_name_the_classes_that_the_user_allows(home):
    settings = [setting for setting in TOY if not setting.startswith("agent.")]
    trained = mbrl_command(
        home, "train", "--config-dir", str(home / "settings"), "agent=mine", f"run_dir={home / 'run'}", *settings
    )
    assert trained.returncode == 0, trained.stderr
    with pytest.raises(ValueError, match=r"agent\.policy\._target_ names mine\.Mine, .* give --config-dir DIR"):
        load_config(home / "run")
    assert f"mbrl train --config-dir {home / 'settings'} agent=mine" in read_starts(home / "run")[0]["command"]
    evaluate = ("evaluate", str(home / "run"), "--episodes", "1", "--config-dir", str(home / "settings"))
    evaluated = mbrl_command(home, *evaluate)
    assert evaluated.returncode == 0 and "success" in evaluated.stdout, evaluated.stderr
    chosen = mbrl_command(home, *evaluate, "--checkpoint", "80", "--json")
    assert chosen.returncode == 0, chosen.stderr
    result = json.loads(chosen.stdout)
    assert (result["env_steps"], result["episodes"]) == (80, 1) and 0 <= result["success"] <= 1
    absent = mbrl_command(home, *evaluate, "--checkpoint", "7")
    assert absent.returncode == 2 and "no checkpoint of 7 env steps; there are: 80, 120" in absent.stderr


def test_own_agents_are_known_to_help_and_messages(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = home / "settings"
    print_help("train", own)
    agents = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  agent="))
    assert "mine" in agents and "sac" in agents
    with pytest.raises(UserError, match="no agent named 'mien'; nearest: mine"):
        check_overrides(["agent=mien"], config_dir=own)
    with pytest.raises(UserError, match=r"no setting named 'agent\.batch_siz'; nearest: agent\.batch_size"):
        check_overrides(["agent=mine", "agent.batch_siz=8"], config_dir=own)


def test_a_broken_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "bad.yaml").write_text("name: [x\n")
    with pytest.raises(UserError, match=r"is not YAML: .*bad\.yaml.*line 1"):
        check_overrides(["agent=bad"], config_dir=tmp_path)
    with pytest.raises(UserError, match=r"bad\.yaml cannot be read: "):
        names_in(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nonesuch\n", r"ModuleNotFoundError: No module named 'nonesuch' \(.*broken\.py, line 1\)"),
        ("\ndef f(:\n", r"SyntaxError: invalid syntax \(.*broken\.py, line 2\)"),
        ("x = 1\ny = x.size\n", r"AttributeError: 'int' object has no attribute 'size' \(.*broken\.py, line 2\)"),
        ("class Other: ...\n", r"there is no broken\.Mine"),
        (None, r"there is no broken\.Mine \(No module named 'broken'\): is its folder on PYTHONPATH\?"),
    ],
)
def test_a_broken_module_shows_its_own_error(
    source: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is not None:
        (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UserError, match=r"^agent\.policy\._target_: .*" + message):
        check({"_target_": "broken.Mine"}, Policy, "agent.policy")
    monkeypatch.delitem(sys.modules, "broken", raising=False)
