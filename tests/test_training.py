"""The whole run: the smoke experiment end to end, a kill -9 that costs nothing, and fair baselines."""

import csv
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from mbrl import training
from mbrl.agents.agent import Agent
from mbrl.collecting.evaluation import Evaluation, Evaluator
from mbrl.data.episodes import to_records
from mbrl.device import repeating
from mbrl.envs.toy import make_env
from mbrl.errors import UserError
from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.paths import checkpoint_folders
from mbrl.run_folder.state import CURVE, is_done
from mbrl.training import check, finish, run
from tests.command import Command, run_command
from tests.demonstrations import write_episodes
from tests.run_folders import build_replay, rows, weights

SMOKE = ["experiment=smoke", "env.task=reach"]
TOY = [
    "env=toy", "total_env_steps=120", "checkpoint_every=40", "eval.every=60", "eval.episodes=2", "threads=1",
    "env.episode_length=20", "env.resolution=32", "collect.frames_per_batch=10", "agent.learning_starts=20",
    "agent.batch_size=8", "video=false",
]  # fmt: skip


def of_smoke(test: Any) -> Any:
    """Mark a test of the whole smoke experiment: one process of pytest-xdist runs them all, and trains it once."""
    return pytest.mark.process(pytest.mark.xdist_group("smoke")(test))


def of_drqv2(test: Any) -> Any:
    """Mark a test that compares with `drqv2`: one process of pytest-xdist runs them all, and trains it once."""
    return pytest.mark.process(pytest.mark.xdist_group("drqv2")(test))


def command(run_dir: Path, *overrides: str) -> list[str]:
    return ["train", *SMOKE, f"run_dir={run_dir}", *overrides]


def compose_config(run_dir: Path, *overrides: str) -> Any:
    with initialize_config_module("configs", version_base="1.3"):
        return compose("train", [f"run_dir={run_dir}", *overrides])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    done = run_command(*command(run_dir))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(run_dir), "a run ends with its folder's path"
    return run_dir


@pytest.fixture(scope="module")
def drqv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, evaluated twice."""
    return run(compose_config(tmp_path_factory.mktemp("drqv2"), *TOY, "agent=drqv2"))


@of_smoke
def test_smoke_leaves_the_whole_run_folder(smoke):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "eval.csv",
        "curve.png",
        "imagination.mp4",
        "imagination.png",
    ):
        assert (smoke / name).stat().st_size > 0, name
    assert list((smoke / "tensorboard").glob("events*"))
    assert len(list((smoke / "checkpoints").iterdir())) == 2, "the previous checkpoint is kept"
    with (smoke / "eval.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["80", "120"]
    last, evaluated = rows(smoke)[-2:]
    assert evaluated["env_steps"] == 120 and "eval/success" in evaluated
    assert (last["env_steps"], last["agent_steps"]) == (120, 60)
    assert last["gradient_steps"] == 40
    seen = {key.split("/")[0] for row in rows(smoke) for key in row}
    assert {"policy", "world_model", "imagination", "collect", "eval"} <= seen
    assert any("world_model/code_loss" in row for row in rows(smoke)), "the transformer has learned"
    assert any("world_model/code_loss" in row and "world_model/tokenizer_loss" in row for row in rows(smoke)[-4:])
    assert not list(smoke.rglob("*.pkl")) and not list(smoke.rglob("*.pt"))


@of_smoke
def test_a_finished_run_is_not_run_again(smoke):
    before = rows(smoke)
    done = run_command(*command(smoke))
    assert done.returncode == 0, done.stderr
    assert rows(smoke) == before


@of_smoke
def test_folder_of_another_config_is_refused(smoke):
    done = run_command(*command(smoke, "agent.batch_size=10"))
    assert done.returncode != 0
    assert "belongs to another config (agent.batch_size: 8 there, 10 here)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow  # 10 s; tests.faults kills a run of drqv2, and each part of this one has its own test of going on
@of_smoke
def test_killed_run_goes_on_to_the_bit(smoke, tmp_path):
    run_dir = tmp_path / "run"
    process = Command(*command(run_dir))
    deadline = time.monotonic() + 200
    while not checkpoint_folders(run_dir / "checkpoints") and process.running and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # somewhere in the middle of the next episode
    assert process.kill() == -signal.SIGKILL, "the run ended before it was killed"
    done = run_command(*command(run_dir))
    assert done.returncode == 0, done.stderr
    assert rows(run_dir) == rows(smoke)
    assert (run_dir / "eval.csv").read_text() == (smoke / "eval.csv").read_text()
    ours, theirs = weights(run_dir), weights(smoke)
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)


@of_drqv2
def test_resumed_optimisers_go_on_to_the_bit(drqv2, tmp_path, monkeypatch):
    """DrQ-v2's encoder is channels-last: beside it, moments in plain order would belong to other weights."""
    update = Agent.update

    def broken(self, replay, agent_steps, *rest):
        if agent_steps == 90:  # after a checkpoint at 80, which has moments
            raise KeyboardInterrupt
        return update(self, replay, agent_steps, *rest)

    config = compose_config(tmp_path / "broken", *TOY, "agent=drqv2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Agent, "update", broken)
        run(config)
    assert run(config).exists()
    assert rows(tmp_path / "broken") == rows(drqv2)


@of_drqv2
def test_a_finished_run_goes_on_to_more_env_steps_to_the_bit(drqv2, tmp_path, monkeypatch):
    short, whole = (compose_config(tmp_path, *TOY, "agent=drqv2", f"total_env_steps={steps}") for steps in (60, 120))
    run(short)
    assert is_done(tmp_path, 60)
    train, seen = training.train, []
    monkeypatch.setattr(training, "train", lambda *given: (seen.append(is_done(tmp_path, 60)), train(*given)))
    run(whole)
    assert seen == [False], "what says that it is done is gone"
    assert rows(tmp_path) == rows(drqv2)
    assert (tmp_path / "eval.csv").read_text() == (drqv2 / "eval.csv").read_text()
    with pytest.raises(UserError, match=r"belongs to another config \(total_env_steps: 120 there, 60 here\)"):
        run(short)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="belongs to another config"):  # it would begin anew, and lose its curve
        run(compose_config(tmp_path, *TOY, "agent=drqv2", "total_env_steps=180"))


@of_drqv2
def test_a_run_that_is_stopped_in_an_evaluation_makes_up_for_it(drqv2, tmp_path, monkeypatch):
    evaluate, config = Evaluator.__call__, compose_config(tmp_path, *TOY, "agent=drqv2")

    def stopped(*arguments: Any) -> Evaluation:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Evaluator, "__call__", stopped)
        run(config)
    assert max(checkpoint_folders(tmp_path / "checkpoints")) == 60
    assert (tmp_path / "eval.csv").read_text().count("\n") == 1, "the header alone"
    assert run(config).exists()
    assert rows(tmp_path) == rows(drqv2)
    assert (tmp_path / "eval.csv").read_text() == (drqv2 / "eval.csv").read_text()


def test_checkpoints_are_written_when_the_last_is_long_ago(tmp_path, monkeypatch):
    random = (*TOY, "agent=random", "agent.batch_size=1", "agent.learning_starts=0", "checkpoint_every=1000")
    saved: list[int] = []
    monkeypatch.setattr(Checkpoints, "save", lambda checkpoints, step: saved.append(step))
    run(compose_config(tmp_path / "soon", *random))
    assert saved == [120]
    monkeypatch.setattr(training, "UNSAVED_SECONDS", 0.0)
    monkeypatch.setattr(training, "UNSAVED_SAVES", 0)
    del saved[:]
    run(compose_config(tmp_path / "late", *random))
    assert saved == [20, 40, 60, 80, 100, 120], "at the end of each episode"


def test_torn_checkpoint_is_one_clear_line(tmp_path):
    config = compose_config(tmp_path, *TOY, "agent=random", "agent.batch_size=1", "agent.learning_starts=0")
    run(config)
    for checkpoint in checkpoint_folders(tmp_path / "checkpoints").values():
        (checkpoint / "values.json").write_text("{")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be used \(.*values\.json has 1 bytes instead of"):
        run(config)


@of_drqv2
def test_real_ratio_one_is_exactly_the_model_free_agent(drqv2, tmp_path):
    control = ["agent=mbpo_ivideogpt", "agent.real_ratio=1", "agent.model_error.every=20"]  # nothing is measured
    run(compose_config(tmp_path / "ratio", *TOY, *control))
    control = rows(drqv2)
    assert any("policy/critic_loss" in row for row in control)
    assert rows(tmp_path / "ratio") == control


@of_drqv2
def test_evaluation_leaves_training_as_it_was(drqv2, tmp_path):
    often = run(compose_config(tmp_path, *TOY, "agent=drqv2", "eval.every=20"))

    def trained(folder: Path) -> list[dict[str, Any]]:
        return [row for row in rows(folder) if "gradient_steps" in row]

    assert trained(drqv2) == trained(often) and len(rows(often)) > len(rows(drqv2))


def test_demonstrations_are_kept_beside_what_is_collected(tmp_path):
    env = make_env(seed=5, episode_length=20, resolution=32)
    write_episodes(tmp_path / "demos", [to_records(env.rollout(20)) for _ in range(2)])
    demos = [f"replay.demos={tmp_path / 'demos'}", "replay.demo_share=0.5"]
    config = compose_config(tmp_path / "run", *TOY, "agent=drqv2", *demos, "total_env_steps=40")
    replay = build_replay(config, tmp_path / "replay")
    assert len(replay.demos) == 40 and len(replay.online) == 0
    assert (run(config) / "eval.csv").exists()


def test_the_replay_reserves_no_more_than_the_run_can_fill(tmp_path):
    """Six episodes of 20 steps and one that may be under way; two checkpoints, each one episode and two more apart."""
    seldom = compose_config(tmp_path, *TOY, "agent=sac", "checkpoint_every=1000000000")
    assert build_replay(seldom, tmp_path / "replay").online.size == (7 + 7) * 21
    often = compose_config(tmp_path, *TOY, "agent=sac", "replay.capacity=42", "checkpoint_every=20")
    assert build_replay(often, tmp_path / "replay").online.size == (2 + 2 * (1 + 2)) * 21


def test_both_checkpoints_can_be_loaded_until_the_third_is_written_whatever_the_workers(tmp_path):
    """Eight workers finish an episode in each batch, after which a checkpoint is written."""
    collect = ["collect.workers=8", "collect.frames_per_batch=160", "checkpoint_every=20", "replay.capacity=42"]
    config = compose_config(tmp_path, *TOY, "agent=sac", *collect, "total_env_steps=10000")
    replay, kept = build_replay(config, tmp_path / "replay"), []
    episode = to_records(make_env(seed=5, episode_length=20, pixels=False).rollout(20))
    for number in range(80):
        episode["reward"].fill_(number)
        replay.online.extend(episode[None])
        if number % 8 == 7:
            for checkpoint in kept:
                build_replay(config, tmp_path / "replay").load_state_dict(checkpoint)
            kept = [*kept[-1:], replay.state_dict()]
    assert replay.online.head > replay.online.size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collect.frames_per_batch=7", "must divide"),
        ("total_env_steps=0", r"^total_env_steps=0 is not allowed: it must be a whole number in \[1, "),
        ("checkpoint_every=1.5", r"^checkpoint_every=1\.5 is not allowed: it must be a whole number"),
        ("eval.every=.inf", r"^eval\.every='?\.?inf'? is not allowed: it must be a whole number"),
        ("eval.episodes=0", "eval.episodes"),
        ("replay.demo_share=2", "demo_share"),
    ],
)
def test_impossible_settings(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run(compose_config(tmp_path, *TOY, "agent=drqv2", override))


def test_a_rate_that_the_batches_of_the_collector_cannot_keep_is_refused(tmp_path):
    """Two calls of imagination in a row would roll out the same policy in the same model."""
    often = compose_config(tmp_path, *TOY, "agent=mbpo", "agent.batch_size=20", "agent.imagine_every=5")
    with pytest.raises(ValueError, match=r"agent.imagine_every \(5\) is shorter than collect.frames_per_batch \(10\)"):
        check(often)
    check(compose_config(tmp_path, *TOY, "agent=mbpo", "agent.batch_size=20", "agent.imagine_every=10"))


def test_step_counts_may_be_written_as_powers_of_ten(tmp_path):
    config = compose_config(tmp_path, *TOY, "agent=random", "total_env_steps=1e5")
    check(config)
    assert config.total_env_steps == 100000 and isinstance(config.total_env_steps, int)


def test_the_end_is_evaluated_whatever_the_interval(tmp_path):
    folder = run(compose_config(tmp_path, *TOY, "agent=random", "total_env_steps=50", "eval.every=1000"))
    rows = (folder / "eval.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("50,") and (folder / "curve.png").exists()


def test_threads_are_those_of_one_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def stopped(config: Any) -> None:
        seen.append(torch.get_num_threads())
        raise ArithmeticError

    monkeypatch.setattr(training, "build", stopped)
    for number in (before + 1, "null"):
        with pytest.raises(ArithmeticError):
            run(compose_config(tmp_path, *TOY, "agent=random", f"threads={number}"))
    assert seen == [before + 1, before] and torch.get_num_threads() == before


def test_the_curve_that_marks_a_run_as_done_is_drawn_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config(tmp_path, *TOY, "agent=random", "video=true")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    (tmp_path / "eval.csv").write_text("step,success,seed\n120,0.5,0\n")
    marked: list[bool] = []  # whether the run counts as done when its video and its curve.csv are written
    for name in ("mbrl.training.film_imagination", "mbrl.results.plot.write_curves"):
        monkeypatch.setattr(name, lambda *_: marked.append((tmp_path / CURVE).exists()))
    finish(config, SimpleNamespace(directory=tmp_path))  # type: ignore[arg-type]
    assert marked == [False, False] and (tmp_path / CURVE).exists()


TINY_PAPER = [  # its model and its batches, made small
    "experiment=ivideogpt_paper", "agent=mbpo_ivideogpt", "env.task=door-lock", "total_env_steps=80",
    "checkpoint_every=40", "env.episode_length=40", "collect.frames_per_batch=10", "eval.every=80", "eval.episodes=1",
    "video=false", "agent.learning_starts=20", "agent.batch_size=8", "agent.model_batch_size=2",
    "env.resolution=32", "agent.world_model.tokenizer.resolution=32", "agent.model_updates_first=4",
    "agent.imagine_every=20", "agent.imagination.rollouts=2",
    "agent.imagination.horizon=3", "agent.imagination.retain=2", "worldmodel.precision=float32",
    "agent.policy.encoder_channels=[8,8,8,8]", "agent.policy.hidden_size=32",
    "agent.world_model.tokenizer.autoencoder.block_out_channels=[32,32,32]",
    "agent.world_model.tokenizer.autoencoder.layers_per_block=1",
    "agent.world_model.tokenizer.codebooks.context_codes=64", "agent.world_model.tokenizer.codebooks.dynamics_codes=64",
    "agent.world_model.transformer.width=32", "agent.world_model.transformer.layers=1",
    "agent.world_model.transformer.heads=2", "agent.world_model.transformer.mlp_width=64",
    "agent.world_model.training.tokenizer_updates=2", "agent.world_model.training.tokenizer_every=2",
]  # fmt: skip


@pytest.mark.slow  # 10 s
def test_a_job_of_the_paper_in_miniature_to_the_same_bits(tmp_path: Path) -> None:
    """With and without `deterministic`: on a CPU the usual algorithms repeat a run too."""
    usual = run(compose_config(tmp_path / "usual", *TINY_PAPER))
    assert run(compose_config(tmp_path / "repeating", *TINY_PAPER, "deterministic=true")).exists()
    assert not torch.are_deterministic_algorithms_enabled(), "the setting is the run's"
    assert rows(usual) == rows(tmp_path / "repeating")


def test_deterministic_refuses_a_workspace_that_does_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    wrong = pytest.raises(
        ValueError, match="deterministic=true needs CUBLAS_WORKSPACE_CONFIG=:4096:8 or :16:8, not :0:0"
    )
    with wrong, repeating(True):
        pass
    with repeating(False):
        assert not torch.are_deterministic_algorithms_enabled()
