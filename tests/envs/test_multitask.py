"""Several tasks in one environment: whose episode it is, what the state says, and what evaluation writes of each."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from mbrl.collecting.evaluation import Evaluator
from mbrl.envs.metaworld import MetaWorld
from mbrl.envs.multitask import MultiTask, make_env
from mbrl.results.read_curves import read_curves
from mbrl.run_folder.logger import Logger
from policies.random import RandomPolicy

TASKS = ["reach", "drawer-close-v3"]
SHORT = {"pixels": False, "episode_length": 20}


def test_every_task_has_its_turn_and_its_own_episodes() -> None:
    several = MultiTask(TASKS, seed=3, worker=1, **SHORT)
    alone = [MetaWorld(task, 3, 1, **SHORT) for task in TASKS]
    for episode in range(4):
        state = several.reset()[0]["state"]
        task = (episode + 1) % 2  # worker 1 begins with the second
        assert state[39:].tolist() == np.eye(2)[task].tolist()
        np.testing.assert_array_equal(state[:39], alone[task].reset()[0]["state"])
        action = np.full(4, 0.3, np.float32)
        ours, theirs = several.step(action), alone[task].step(action)
        np.testing.assert_array_equal(ours[0]["state"][:39], theirs[0]["state"])
        assert ours[1:4] == theirs[1:4]


def test_workers_play_different_tasks_at_a_time() -> None:
    workers = [MultiTask([*TASKS, "button-press"], worker=worker, **SHORT) for worker in range(3)]
    for _ in range(2):
        one_hots = [env.reset()[0]["state"][39:] for env in workers]
        np.testing.assert_array_equal(sum(one_hots), np.ones(3))


def test_it_goes_on_with_any_episode_and_any_seed() -> None:
    whole, rest = MultiTask(TASKS, seed=0, **SHORT), MultiTask(TASKS, seed=5, first_episode=3, **SHORT)
    states = [whole.reset()[0]["state"] for _ in range(5)]
    np.testing.assert_array_equal(rest.reset(seed=0)[0]["state"], states[3])
    rest.seek(1)
    np.testing.assert_array_equal(rest.reset()[0]["state"], states[1])


def test_a_snapshot_goes_back_to_its_task() -> None:
    env = MultiTask(TASKS, **SHORT)
    env.reset()
    kept = env.snapshot()
    after = env.step(np.ones(4, np.float32))
    env.reset()
    env.restore(kept)
    assert env.observe()["state"][39:].tolist() == [1, 0]
    again = env.step(np.ones(4, np.float32))
    np.testing.assert_array_equal(again[0]["state"], after[0]["state"])
    assert again[1] == after[1]


def test_torchrl_finds_its_specs_right() -> None:
    env = make_env(TASKS, task="two", **SHORT)
    check_env_specs(env)
    assert env.observation_spec["state"].shape == (41,)
    assert "task" not in env.observation_spec.keys()  # who learns from state reads it there


def test_pictures_come_with_their_task() -> None:
    env = make_env(TASKS, task="two", resolution=16, episode_length=4)
    check_env_specs(env)
    seen = [env.rollout(2)["task"] for _ in range(2)]
    assert sorted(task[0].tolist() for task in seen) == [[0, 1], [1, 0]]  # the check above took one turn or another
    assert all((task == task[0]).all() for task in seen)


def test_evaluation_says_how_each_task_went(tmp_path: Path) -> None:
    evaluator = Evaluator(partial(make_env, TASKS, **SHORT), episodes=2, max_steps=10, seed=0)
    policy = RandomPolicy(evaluator.env.observation_spec, evaluator.env.action_spec)
    evaluation = evaluator(policy)
    assert evaluation.tasks == ["reach", "drawer-close"] * 2 and len(evaluation.success) == 4
    evaluation.success[:] = [True, False, False, False]
    assert evaluation.success_of_tasks() == {"reach": 0.5, "drawer-close": 0.0}
    assert evaluation.summary()["success/reach"] == 0.5 and evaluation.summary()["success"] == 0.25

    run = tmp_path / "run"
    for resumed in (None, 100):  # what comes after the checkpoint is written again
        logger = Logger(run, 200, resume_env_steps=resumed)
        for step in (100, 200)[: None if resumed is None else 1]:
            logger.log_eval(evaluation, env_steps=step + (resumed or 0), seed=7)
        logger.close()
    with (run / "eval_tasks.csv").open() as stream:
        rows = [(row["step"], row["task"], row["success"], row["seed"]) for row in csv.DictReader(stream)]
    of_each = (("reach", "0.5"), ("drawer-close", "0"))
    assert rows == [(step, task, rate, "7") for step in ("100", "200") for task, rate in of_each]

    (run / "config.yaml").write_text("agent: {name: sac}\nenv: {task: two}\n")
    curves = {curve.task: curve.success.tolist() for curve in read_curves([run])}
    assert curves == {"two": [0.25, 0.25], "two · reach": [0.5, 0.5], "two · drawer-close": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["reach"], "two or more tasks"),
        ("reach", "two or more tasks"),
        (["reach", "reach-v3"], "has reach twice"),
        (["reach", "raech"], "did you mean"),
    ],
)
def test_impossible_tasks_are_one_line(tasks: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_env(tasks, **SHORT)


def test_a_single_task_has_no_table_of_tasks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from mbrl.envs.toy import make_env as make_toy

    evaluator = Evaluator(partial(make_toy, episode_length=5, resolution=16), episodes=1, max_steps=5, seed=0)
    evaluation = evaluator(RandomPolicy(evaluator.env.observation_spec, evaluator.env.action_spec))
    logger = Logger(tmp_path, 100)
    logger.log_eval(evaluation, env_steps=10, seed=0)
    logger.close()
    assert evaluation.tasks == [] and not (tmp_path / "eval_tasks.csv").exists()
