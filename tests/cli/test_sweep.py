"""Sweeps: every job is checked before the first starts, failures stop nothing, and what is done is not repeated."""

import logging
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import mbrl
from mbrl.cli.configured import run_configured
from mbrl.cli.errors import explain
from mbrl.cli.sweep import LOG, failures, naming_killed_worker, prepare, run_job, show_jobs
from mbrl.compose import check_overrides, composed, composed_jobs
from mbrl.errors import ProcessDied, UserError
from mbrl.run_folder.state import FAILURE
from mbrl.training import check
from tests.run_folders import rows
from tests.test_training import TOY

pytestmark = pytest.mark.process  # whole commands

JOBS = ["agent=sac,random", "seed=0,1", *TOY]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(**settings: Any) -> DictConfig:
    return OmegaConf.create({"run_dir": "runs/job", "total_env_steps": 100, **settings})


def strict(config: DictConfig) -> DictConfig:
    OmegaConf.set_struct(config, True)
    return config


def test_every_job_is_checked_and_its_folder_claimed() -> None:
    folders = prepare(JOBS, check)
    expected = [f"runs/{agent}/toy/seed{seed}" for agent in ("sac", "random") for seed in (0, 1)]
    assert [str(folder) for folder in folders] == expected
    assert [OmegaConf.load(folder / "config.yaml").seed for folder in folders] == [0, 1, 0, 1]
    assert prepare(JOBS, check) == folders, "the same sweep again may go on"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=0,x", *TOY], r"seed=x is not allowed: it must be a whole number .*\(in the job seed=x\)"),
        (["agent=sac", "env.task=hammer,hammr"], r"unknown Meta-World task 'hammr'.*\(in the job env.task=hammr\)"),
        (["agent.batch_size=8,9", "agent=sac", *TOY[:-1]], r"write to runs/sac/toy/seed0 .*\$\{agent.batch_size\}"),
    ],
)
def test_a_bad_job_is_refused_before_any_starts(arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepare(arguments, check)
    assert not Path("runs").exists()


def test_jobs_of_another_machine_are_not_held_against_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**20)  # bytes
    monkeypatch.setattr("mbrl.envs.metaworld.Renderer", None)  # a login node has no OpenGL
    sweep = ["agent=drqv2", "seed=0,1", "device=cuda:99", "replay.device=cuda"]
    assert len(prepare(sweep, partial(check, here=False), here=False)) == 2
    with pytest.raises(UserError, match="device=cuda:99 is not allowed"):
        prepare(sweep, check)
    with pytest.raises(UserError, match="did you mean hammer"):
        prepare(["agent=sac", "env.task=hammr"], partial(check, here=False), here=False)


def test_a_folder_of_another_configuration_is_refused() -> None:
    prepare(JOBS, check)
    (begun := Path("runs/random/toy/seed1") / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="runs/random/toy/seed1 belongs to another config"):
        prepare([*JOBS, "replay.gamma=0.5"], check)
    assert OmegaConf.load("runs/sac/toy/seed0/config.yaml").replay.gamma == 0.95, "none is taken where one is refused"
    begun.unlink()
    prepare([*JOBS, "replay.gamma=0.5"], check)  # what never began belongs to nobody


def test_a_run_that_is_to_be_longer_keeps_its_configuration_until_its_turn() -> None:
    prepare(JOBS, check)
    (Path("runs/random/toy/seed1/checkpoints") / "checkpoint-000000000040").mkdir(parents=True)
    before = Path("runs/random/toy/seed1/config.yaml").read_bytes()
    prepare([*JOBS, "total_env_steps=1000000"], check)
    assert Path("runs/random/toy/seed1/config.yaml").read_bytes() == before
    with pytest.raises(ValueError, match="runs/random/toy/seed1 belongs to another config"):
        prepare([*JOBS, "total_env_steps=1"], check)


def test_a_group_is_no_setting_to_name_a_folder_by() -> None:
    with pytest.raises(ValueError, match="start them one by one, each with a run_dir of its own"):
        prepare(["agent=sac", "policy@agent.policy=sac,sac_simba", *TOY], check)


def test_a_glob_over_a_group() -> None:
    folders = prepare(["agent=glob([random,sac])", *TOY], check)
    assert [folder.parts[1] for folder in folders] == ["random", "sac"]


def test_a_failed_job_is_written_down_and_the_next_attempt_clears_it(caplog: pytest.LogCaptureFixture) -> None:
    def broken(config: DictConfig) -> None:
        raise UserError("no such thing")

    assert run_job(job(), broken, alone=True) is None
    assert "error: runs/job: no such thing" in caplog.text
    assert failures([Path("runs/job"), Path("runs/other")]) == [(Path("runs/job"), "no such thing")]
    assert "in broken" in (Path("runs/job") / FAILURE).read_text()
    assert run_job(job(), lambda config: config.total_env_steps, alone=True) == 100
    assert failures([Path("runs/job")]) == []


def test_side_by_side_a_job_prints_to_its_own_file(capsys: pytest.CaptureFixture[str]) -> None:
    run_job(job(), lambda config: sys.stdout.write("hello\n"), alone=False)
    assert (Path("runs/job") / LOG).read_text() == "hello\n"
    assert capsys.readouterr().out == ""


def test_side_by_side_a_job_logs_to_its_own_file(capsys: pytest.CaptureFixture[str]) -> None:
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        run_job(job(), lambda config: root.warning("a checkpoint is damaged"), alone=False)
        root.warning("after it")
    finally:
        root.removeHandler(handler)
    assert (Path("runs/job") / LOG).read_text() == "a checkpoint is damaged\n"
    assert capsys.readouterr().err == "after it\n"


def test_what_is_done_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    manifest = Path("runs/job/checkpoints/checkpoint-000000000100/manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    runs: list[DictConfig] = []
    run_job(job(), runs.append, alone=True)
    assert len(runs) == 1, "without its curve it is not done"
    Path("runs/job/curve.png").touch()
    run_job(job(), runs.append, alone=True)
    assert len(runs) == 1
    run_job(job(total_env_steps=200), runs.append, alone=True)
    assert len(runs) == 2, "it is to go further"
    assert "resuming runs/job from env step 100 of 200" in caplog.text
    shutil.rmtree("runs/job/checkpoints")
    Path("runs/job/metrics.jsonl").write_text('{"env_steps": 100, "wall_time": 1.0}\n')
    Path("runs/job", FAILURE).write_text("of an attempt before")
    run_job(job(), runs.append, alone=True)
    assert len(runs) == 2, "nor where its checkpoints were removed"
    assert failures([Path("runs/job")]) == []


def test_the_reason_of_a_failed_job_is_the_line_of_its_error() -> None:
    run_job(job(), lambda config: OmegaConf.update(strict(config), "nothing", 1), alone=True)
    ((folder, reason),) = failures([Path("runs/job")])
    assert folder == Path("runs/job") and reason.startswith("Key 'nothing' is not in struct")
    assert "Traceback" in Path("runs/job", FAILURE).read_text()


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--info"], ["--run"]])
def test_a_sweep_that_hydra_refuses_claims_no_folder(option: list[str]) -> None:
    with pytest.raises(UserError, match=f"--multirun and {option[0]} exclude each other"):
        run_configured("train", ["--multirun", "seed=0,1", *TOY, *option])
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [["hydra.mode=MULTIRUN"], ["--multirun", "+hydra.mode=RUN"]])
def test_a_sweep_is_started_by_its_option_alone(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=rf"{re.escape(arguments[-1])} is not allowed: a sweep is what --multirun"):
        run_configured("train", ["seed=0,1", *TOY, *arguments])
    assert not Path("runs").exists()


def test_settings_may_stand_on_both_sides_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    run_configured("train", [*TOY, "agent=random", "--cfg", "job", "seed=7"])
    settings = OmegaConf.create(capsys.readouterr().out)
    assert (settings.seed, settings.agent.name, settings.env.episode_length) == (7, "random", 20)


def test_a_killed_process_of_joblib_is_named() -> None:
    class TerminatedWorkerError(Exception):  # as joblib calls its own
        pass

    named = pytest.raises(ProcessDied, match=r"a process of launch=local was killed .* hydra.launcher.n_jobs=N")
    with named, naming_killed_worker():
        raise TerminatedWorkerError("SIGKILL(-9)")


def test_a_cancelled_slurm_job_is_named_in_one_line() -> None:
    class UncompletedJobError(RuntimeError):
        """Of submitit, which is an extra."""

    said = "Job 11_0 (task: 0) with path result.pkl\nhas not produced any output (state: CANCELLED)\nError stream: ..."
    with pytest.raises(ProcessDied) as caught, naming_killed_worker():
        raise UncompletedJobError(said)
    line, code = explain(caught.value) or ("", 0)
    assert code == 1 and "Job 11_0 (task: 0)" in line and "(state: CANCELLED)" in line and "stream" not in line
    assert line.endswith("the same command goes on from there")


def test_a_job_that_slurm_starts_again_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitit then leaves by SystemExit(-1); elsewhere that is a failure like any other."""

    def leave(config: DictConfig) -> None:
        raise SystemExit(-1)

    run_job(job(), leave, alone=False)
    assert Path("runs/job", FAILURE).exists()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(SystemExit):
        run_job(job(), leave, alone=False)
    assert not Path("runs/job", FAILURE).exists()


@pytest.mark.parametrize("place", ["file://{0}/my_lab/conf", "{0}/my_lab/conf", "pkg://my_lab.conf"])
def test_folders_of_hydra_searchpath_have_agents_too(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_lab" / "conf" / "agent").mkdir(parents=True)
    for package in ("my_lab", "my_lab/conf"):
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_lab" / "conf" / "agent" / "mine.yaml").write_text("defaults: [random, _self_]\nname: mine\n")
    arguments = [f"hydra.searchpath=[{place.format(tmp_path)}]", "agent=mine", "seed=0,1", *TOY]
    check_overrides(arguments)
    assert [config.agent.name for _, config in composed_jobs(arguments)] == ["mine", "mine"]


def test_a_package_that_is_not_there_has_no_agents() -> None:
    with pytest.raises(UserError, match="no agent named 'mine'"):
        check_overrides(["hydra.searchpath=[pkg://no_lab.conf]", "agent=mine", *TOY])


def test_packages_of_somebody_else_hide_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m mbrl` beside them has the path, also where a folder is no package yet."""
    for folder, file in (("policies", "__init__.py"), ("worldmodel", "notes.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    own = [name for name in sys.modules if name.split(".")[0] in ("policies", "worldmodel")]
    with monkeypatch.context() as patch:
        for name in own:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "path", [str(tmp_path), *sys.path])
        mbrl._prefer_own_packages()
        found = [find_spec(name) for name in ("policies", "worldmodel", "policies.sac")]
        assert [spec and Path(str(spec.origin)).relative_to(mbrl.PROJECT).as_posix() for spec in found] == [
            "policies/__init__.py", "worldmodel/__init__.py", "policies/sac.py",
        ]  # fmt: skip
        path = list(sys.path)
        mbrl._prefer_own_packages()
        assert sys.path == path, "once is enough"


def test_a_package_named_configs_of_somebody_else_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    assert composed(["agent=sac"]).agent.name == "sac"
    assert "configs" not in sys.modules


def test_after_a_sweep_its_folders_are_on_stdout_and_failures_on_stderr(tmp_path, capsys):
    done, failed = tmp_path / "seed0", tmp_path / "seed1"
    for folder in (done, failed):
        folder.mkdir()
    assert show_jobs([done]) == 0
    (failed / FAILURE).write_text("Traceback\nno space left\n")
    assert show_jobs([done, failed]) == 1
    out, errors = capsys.readouterr()
    assert out.splitlines() == [str(done)] * 2
    assert f"{failed}: no space left" in errors and "1 of 2 jobs failed" in errors


@pytest.mark.slow
def test_a_sweep_side_by_side_goes_on_where_it_failed() -> None:
    """The first time, one job of two cannot write; the second time, only that one runs."""
    command = [sys.executable, "-m", "mbrl", "train", "--multirun", "launch=local", "agent=random", "seed=0,1", *TOY]
    in_the_way = Path("runs/random/toy/seed1/metrics.jsonl")
    in_the_way.mkdir(parents=True)
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 1
    assert first.stdout.splitlines()[-1] == "runs/random/toy/seed0"
    assert "1 of 2 jobs failed" in first.stderr and f"runs/random/toy/seed1/{FAILURE}" in first.stderr
    done = rows(Path("runs/random/toy/seed0"))
    in_the_way.rmdir()
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "runs/random/toy/seed0 is done already" in second.stdout + second.stderr
    assert rows(Path("runs/random/toy/seed0")) == done
    assert len(rows(Path("runs/random/toy/seed1"))) == len(done)


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_a_launcher_that_is_not_installed_is_one_line(name: str) -> None:
    plugin = {"slurm": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}[name]
    if find_spec(f"hydra_plugins.{plugin}") is not None:
        pytest.skip(f"{plugin} is installed")
    with pytest.raises(ValueError, match=rf"launch={name} needs a package .* pip install -e '\.\[{name}\]'"):
        check_overrides([f"launch={name}", "agent=random"], "train")
