"""The command line: help at once, one line for each mistake, exit codes, and overrides that reach Hydra."""

import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from safetensors import SafetensorError

from mbrl.cli import main as cli
from mbrl.cli.errors import explain, root_cause
from mbrl.compose import check_overrides, group_key, groups
from mbrl.errors import UserError, checks_of_arguments
from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.parts import ModulePart
from policies.returns import n_step

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Hydra and the command set up logging for a whole process; other tests share this one."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def mbrl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("MBRL_TRACEBACK", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> list[DictConfig]:
    """In place of training: notes the configurations it was given, and raises what `training.error` says."""
    seen: list[DictConfig] = []
    _replace_training(monkeypatch, seen.append)
    return seen


def _replace_training(monkeypatch: pytest.MonkeyPatch, run: Callable[[DictConfig], Any]) -> None:
    module = ModuleType("mbrl.training")
    module.__dict__["run"] = run
    module.__dict__["check"] = lambda config: None
    monkeypatch.setattr("mbrl.cli.summary.summary", lambda folder, config_dir: "the summary")
    monkeypatch.setitem(sys.modules, "mbrl.training", module)


def _raiser(error: BaseException) -> Callable[[DictConfig], None]:
    def run(config: DictConfig) -> None:
        raise error

    return run


@pytest.mark.process
def test_help_is_there_at_once() -> None:
    script = (
        "import sys, mbrl.cli.main\n"
        "heavy = {'torch', 'torchrl', 'hydra', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.process
def test_the_module_is_the_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "mbrl", "--help"], check=True, capture_output=True, text=True)
    assert shown.stdout.startswith("usage: mbrl")


@pytest.mark.parametrize("command", ["train", "pretrain", "evaluate", "plot", "demos", "collect", "bench", "doctor"])
def test_each_command_has_help_with_an_example(mbrl: Run, command: str) -> None:
    code, out, _ = mbrl(command, "--help")
    assert code == 0
    assert out.startswith(f"usage: mbrl {command}")
    assert f"  mbrl {command}" in out.split("examples:")[1]


def test_the_help_of_train_lists_what_can_be_chosen(mbrl: Run) -> None:
    _, out, _ = mbrl("train", "--help")
    for group, members in groups().items():
        if group == "pretraining":  # of `mbrl pretrain` alone
            continue
        assert f"  {group_key(group)}=" in out
        assert all(member in out for member in members)
    assert "policy@agent.policy=" in out and "worldmodel@agent.world_model=" in out
    _, out, _ = mbrl("pretrain", "--help")
    assert "  worldmodel=" in out


def test_every_part_of_an_agent_is_chosen_as_it_is_typed() -> None:
    agents = {"cloning": "sac", "planner": "mpc_ivideogpt", "policy": "sac", "worldmodel": "mbpo_ivideogpt"}
    for group, agent in agents.items():
        for member in groups()[group]:
            check_overrides([f"{group_key(group)}={member}", f"agent={agent}"])


def test_overrides_reach_training(mbrl: Run, training: list[DictConfig]) -> None:
    code, out, err = mbrl("train", "agent=drqv2", "env.task=door-lock", "seed=3", "+note=mine")
    assert (code, out) == (0, "runs/drqv2/door-lock/seed3\n"), "the folder alone, for scripts"
    assert err == (
        "mbrl: training drqv2 on door-lock for 10000 env steps, into runs/drqv2/door-lock/seed3\nthe summary\n"
    )
    config = training[0]
    assert (config.agent.name, config.env.task, config.seed, config.note) == ("drqv2", "door-lock", 3, "mine")


def test_what_a_run_logs_is_a_line_on_stderr(mbrl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_training(monkeypatch, lambda config: logging.getLogger("mbrl.x").warning("damaged: %s", "\x1b[2J"))
    code, out, err = mbrl("train", "agent=random")
    assert (code, out) == (0, "runs/random/window-close/seed0\n")
    assert "mbrl: damaged: ?[2J\n" in err


@pytest.mark.process
def test_a_sweep_runs_once_for_each_value(mbrl: Run, training: list[DictConfig]) -> None:
    code, _, _ = mbrl("train", "--multirun", "agent=drqv2,random", "seed=1,2")
    assert code == 0
    assert [(c.agent.name, c.seed) for c in training] == [
        ("drqv2", 1),
        ("drqv2", 2),
        ("random", 1),
        ("random", 2),
    ]


def test_cfg_job_prints_the_settings_and_trains_nothing(mbrl: Run, training: list[DictConfig]) -> None:
    code, out, _ = mbrl("train", "agent=drqv2", "--cfg", "job")
    assert code == 0
    assert "name: drqv2" in out
    assert not training


@pytest.mark.parametrize(
    ("env", "target"),
    [
        ("metaworld", "mbrl.envs.metaworld.make_env"),
        ("mt10", "mbrl.envs.multitask.make_env"),
        ("mt50", "mbrl.envs.multitask.make_env"),
        ("toy", "mbrl.envs.toy.make_env"),
    ],
)
@pytest.mark.parametrize(
    ("setting", "hint"), [("env.epsode_length", "nearest: episode_length"), ("env.colour", "there are: ")]
)
def test_a_setting_that_the_environment_lacks_is_one_line(
    mbrl: Run, env: str, target: str, setting: str, hint: str
) -> None:
    code, _, err = mbrl("train", f"+{setting}=1", f"env={env}", "agent=sac", "experiment=smoke", "run_dir=run")
    assert code == 2
    errors = err[err.index("mbrl: error: ") :]
    assert errors.startswith(f"mbrl: error: {setting}: {target} has no such argument; {hint}")
    assert errors.count("\n") == 1


def test_a_setting_that_the_replay_lacks_is_one_line(mbrl: Run) -> None:
    code, _, err = mbrl("train", "+replay.frame_stak=1", "env=toy", "agent=sac", "experiment=smoke", "run_dir=run")
    assert code == 2
    assert "Traceback" not in err
    assert err.endswith("replay.frame_stak: mbrl.replay.replay.Replay has no such argument; nearest: frame_stack\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["agent=drqv"], "no agent named 'drqv'; nearest: drqv2"),
        (["env=metawrld"], "no env named 'metawrld'; nearest: metaworld"),
        (["experiment=smok"], "no experiment named 'smok'; nearest: smoke"),
        (["worldmodel@agent.world_model=ivideogpt_nao"], "nearest: ivideogpt_nano"),
        (["agnt=drqv2"], "no setting named 'agnt'; nearest: agent"),
        (["env.tsk=reach"], "no setting named 'env.tsk'; nearest: env.task"),
        (["agent=drqv2", "agent.batch_siz=8"], "nearest: agent.batch_size"),
        (["seed=[1"], "cannot read the setting 'seed=[1'"),
        (["seed"], "a setting is written key=value"),
        (["--sed=1"], "no option '--sed=1'"),
        (["agent=sac", "policy=sac_bro"], "give policy@agent.policy=sac_bro"),
        (["agent=mpc_ivideogpt", "planner=cem"], "give planner@agent.planner=cem"),
        (["--config-dir", "nowhere"], "there is no folder nowhere"),
        (["agent=sac", "--config-dir"], "argument --config-dir/-cd: expected one argument"),
        (["agent=sac", "--cfg", "everything"], "invalid choice: 'everything'"),
        (["=5"], "no setting named ''"),
        (["hydra=5"], "Config group override must be a string or a list"),
        (["-m", "agent=drqv2,drqv"], "no agent named 'drqv'; nearest: drqv2"),
        (["-m", "seed=1,2", "env.tsk=reach,hammer"], "no setting named 'env.tsk'"),
    ],
)
def test_a_slip_in_the_settings_costs_one_line(
    mbrl: Run, training: list[DictConfig], arguments: list[str], said: str
) -> None:
    code, _, err = mbrl("train", *arguments)
    assert code == 2
    assert err.startswith("mbrl: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not training


def test_a_run_folder_that_is_no_text_is_one_line(mbrl: Run) -> None:
    code, _, err = mbrl("train", "experiment=smoke", "env=toy", "agent=random", "run_dir=5")
    assert (code, err) == (2, "mbrl: error: run_dir=5 is not allowed: it must be text\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("unknown task 'x';\n  nearest: y"), 2, "unknown task 'x'; nearest: y"),
        (MemoryError("8 GB"), 1, "there is not enough memory (8 GB): free some"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "there is not enough memory"),
        (FloatingPointError("critic loss is nan"), 1, "critic loss is nan; the run folder keeps"),
        (OSError(errno.ENOSPC, "No space left", "runs/a"), 1, "the disk that holds runs/a is full"),
        (FileNotFoundError(errno.ENOENT, "No such file", "demos/x"), 2, "demos/x: No such file"),
        (FileNotFoundError("runs/a holds no checkpoint"), 2, "runs/a holds no checkpoint"),
    ],
)
def test_errors_in_training_are_one_line(
    mbrl: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    _replace_training(monkeypatch, _raiser(error))
    left, _, err = mbrl("train", "agent=random")
    assert (left, err.count("\n")) == (code, 2)
    assert err.splitlines()[-1].startswith(f"mbrl: error: {said}")


def test_an_interrupt_says_how_to_go_on(mbrl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_training(monkeypatch, _raiser(KeyboardInterrupt()))
    code, _, err = mbrl("train", "agent=random")
    assert code == 130
    assert "the same command resumes from the last checkpoint" in err


@pytest.mark.parametrize("defect", [TypeError("a defect"), ValueError("zip() argument 2 is shorter"), KeyError("x")])
def test_a_defect_is_a_traceback_and_a_request_for_a_report(
    monkeypatch: pytest.MonkeyPatch, mbrl: Run, defect: Exception
) -> None:
    monkeypatch.setattr("mbrl.cli.errors.PACKAGES", [Path(__file__).parent])  # where the raiser is
    _replace_training(monkeypatch, _raiser(defect))
    code, _, err = mbrl("train", "agent=random")
    assert code == 1
    assert "Traceback (most recent call last)" in err and f"{type(defect).__name__}: {defect}" in err
    last = err.splitlines()[-1]
    assert all(part in last for part in ("defect", "command", "traceback", "`mbrl doctor`"))


def test_an_error_in_a_users_own_code_is_no_defect_of_ours(
    monkeypatch: pytest.MonkeyPatch, mbrl: Run, tmp_path: Path
) -> None:
    monkeypatch.setattr("mbrl.cli.errors.PACKAGES", [tmp_path / "mbrl"])  # beside the packages, in the clone
    (tmp_path / "their_code.py").write_text("def run(config):\n    return {}['x']\n")
    monkeypatch.syspath_prepend(tmp_path)
    _replace_training(monkeypatch, import_module("their_code").run)
    code, _, err = mbrl("train", "agent=random")
    assert code == 1 and "KeyError: 'x'" in err
    assert err.splitlines()[-1] == f"mbrl: your own code raised this: {tmp_path / 'their_code.py'}, line 2"


def test_a_failed_zip_is_no_fault_of_the_users() -> None:
    with pytest.raises(ValueError, match="zip") as caught, checks_of_arguments():
        list(zip([1], [], strict=True))
    assert not isinstance(caught.value, UserError) and explain(caught.value) is None
    with pytest.raises(UserError, match="too small"), checks_of_arguments():
        raise ValueError("too small")


def test_a_check_of_a_part_is_one_line() -> None:
    with pytest.raises(ValueError, match="n_step needs") as caught:
        n_step(torch.zeros(2), torch.zeros(3), 0.9)
    explained = explain(caught.value)
    assert explained is not None and explained[1] == 2


@pytest.mark.parametrize("words", ["Cannot allocate memory (os error 12)", "CUDA out of memory"])
def test_no_memory_is_never_taken_for_a_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """On resume, memory may run out in any of these; none may send the user to another folder or to a backup."""

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError(words) if "CUDA" in words else SafetensorError(words)

    Checkpoints(tmp_path, {"policy": ModulePart(torch.nn.Linear(2, 2))}).save(10)
    for place in ("mbrl.run_folder.tensors.load_file", "torch.nn.Module.load_state_dict"):
        with monkeypatch.context() as patch, pytest.raises(Exception, match="memory") as caught:
            patch.setattr(place, fails)
            Checkpoints(tmp_path, {"policy": ModulePart(torch.nn.Linear(2, 2))}).load_latest()
        explained = explain(caught.value)
        assert explained is not None and explained[1] == 1
        assert "memory" in explained[0] and not {"backup", "delete", "remove", "anew"} & set(explained[0].split())


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, mbrl: Run) -> None:
    monkeypatch.setenv("MBRL_TRACEBACK", "1")
    _replace_training(monkeypatch, _raiser(UserError("where?")))
    with pytest.raises(ValueError, match=r"where\?"):
        cli.main(["train", "agent=random"])


def test_the_cause_is_found_inside_hydras_errors() -> None:
    ours = UserError("resolution 63 is not divisible by 16")
    wrapped = InstantiationException("Error in call to target")
    wrapped.__cause__ = ours
    assert root_cause(wrapped) is ours
    assert explain(root_cause(wrapped)) == (str(ours), 2)
    defect = InstantiationException("Error in call to target")
    defect.__cause__ = TypeError("unexpected keyword")
    assert explain(root_cause(defect)) is None


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_a_folder_that_is_no_run_cannot_be_evaluated_or_drawn(mbrl: Run, tmp_path: Path, command: str) -> None:
    code, _, err = mbrl(command, str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert str(tmp_path) in err


def test_bare_mbrl_prints_help(mbrl: Run) -> None:
    code, out, err = mbrl()
    assert (code, err) == (0, "")
    assert out.startswith("usage: mbrl") and "evaluate" in out


def test_a_mistyped_command_gets_a_suggestion(mbrl: Run) -> None:
    assert mbrl("trian")[::2] == (2, "mbrl: error: no command 'trian'; did you mean train?\n")
    assert "there are: train, pretrain" in mbrl("xyzzy")[2]


def test_the_version(mbrl: Run) -> None:
    code, out, _ = mbrl("--version")
    assert code == 0 and re.fullmatch(r"mbrl \d+\.\d+\.\d+(\.dev\d+)?\n", out)


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mbrl tra", ["train "]),
        ("mbrl evaluate --ch", ["--checkpoint "]),
        ("mbrl train agent=drq", ["agent=drqv2 "]),
        ("mbrl train policy@", ["policy@agent.policy="]),
        ("mbrl train agent=sac env.ta", ["env.task="]),
        ("mbrl pretrain worldmodel=ivideogpt_n", ["worldmodel=ivideogpt_nano "]),
    ],
)
def test_the_shell_completes_commands_options_and_settings(tmp_path: Path, typed: str, offered: list[str]) -> None:
    """Asks as the hook of `register-python-argcomplete` does."""
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"COMP_LINE": typed, "COMP_POINT": str(len(typed)), "COMP_TYPE": "9", "_ARGCOMPLETE_COMP_WORDBREAKS": " "}
    subprocess.run([sys.executable, "-m", "mbrl"], env={**os.environ, **asked}, check=True, capture_output=True)
    assert answer.read_text().split("\n") == offered


def test_an_unknown_benchmark_names_those_there_are(mbrl: Run) -> None:
    code, _, err = mbrl("bench", "replai")
    assert code == 2
    assert "no benchmark named 'replai'; there are: replay" in err


def test_what_a_strangers_run_says_does_not_control_the_terminal(mbrl: Run, tmp_path: Path) -> None:
    for name, text in (("one", "a"), ("other", r"\e[2J\e]0;title\a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f'agent: {{name: "{text}"}}\n')
    code, out, _ = mbrl("compare", "one", "other")
    assert code == 0 and "?[2J?]0;title?" in out and "\x1b" not in out
    record = logging.makeLogRecord({"msg": "skipped %s", "args": ("\x1b[2J",)})
    assert cli.LineFormatter("mbrl: %(message)s").format(record) == "mbrl: skipped ?[2J"


@pytest.mark.process
def test_a_command_whose_output_nobody_reads_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as pipe:
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}
        done = subprocess.run([sys.executable, "-m", "mbrl"], env=buffered, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (cli.UNREAD, b"")


def test_plot_prints_where_the_picture_is(mbrl: Run, tmp_path: Path) -> None:
    published = tmp_path / "tdmpc2" / "door-lock.csv"
    published.parent.mkdir()
    published.write_text("step,success,seed\n0,0.0,1\n1000,1.0,1\n")
    code, out, _ = mbrl("plot", str(published), "--output", "lock.svg")
    assert (code, out) == (0, "lock.svg\n")
    assert (tmp_path / "lock.svg").stat().st_size > 1000


@pytest.mark.process
def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("mbrl")
    if not command.exists():
        pytest.skip(f"{command} is not installed: pip install -e .")
    result = subprocess.run([command, "tran"], capture_output=True, text=True)  # an answer that imports no torch
    assert (result.returncode, result.stderr) == (2, "mbrl: error: no command 'tran'; did you mean train?\n")
