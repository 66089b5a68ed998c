"""Meta-World under TorchRL's keys: seeding, episodes, snapshots, the protocol's switches and its errors."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import check_env_specs

from mbrl.envs.metaworld import MetaWorld, make_env
from mbrl.envs.simulator import Simulator, resolve_task, task_names

# Their resets do what is easily missed: attributes that are views into MjData, goals drawn until they fit.
TASKS = ("plate-slide", "basketball", "bin-picking", "door-lock", "push", "peg-insert-side", "dial-turn")
ALL = pytest.param(None, marks=pytest.mark.slow, id="all-50")


def actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


def play(simulator: Simulator, moves: np.ndarray) -> list[tuple[bytes, float, bool]]:
    steps = (simulator.step(move) for move in moves)
    return [(observation.tobytes(), reward, success) for observation, reward, success in steps]


@pytest.mark.parametrize("task", [*TASKS, ALL])
def test_a_reset_does_not_depend_on_what_was_played_before(task: str | None) -> None:
    for name in [task] if task else task_names():
        played, fresh = Simulator(name, 3, 1, "fresh"), Simulator(name, 3, 1, "fresh")
        for episode in range(2):
            played.reset(episode)
            play(played, actions(40, episode))
        assert np.array_equal(played.reset(7), fresh.reset(7)), name
        assert play(played, actions(30)) == play(fresh, actions(30)), name


@pytest.mark.parametrize("task", [*TASKS, ALL])
def test_a_snapshot_is_exact_also_in_another_environment(task: str | None) -> None:
    for name in [task] if task else task_names():
        env, other = MetaWorld(name, 0, pixels=False), MetaWorld(name, 9, pixels=False)
        env.reset()
        for move in actions(20):
            env.step(move)
        snapshot = env.snapshot()
        expected = [env.step(move) for move in actions(20, seed=1)]
        for target in (env, other):  # `other` was never reset
            target.restore(snapshot)
            for move, step in zip(actions(20, seed=1), expected, strict=True):
                again = target.step(move)
                assert np.array_equal(again[0]["state"], step[0]["state"]), name
                assert again[1:4] == step[1:4], name


def fingerprint(_: int) -> bytes:
    env = make_env("push", 5, 2, resolution=16, episode_length=20)
    torch.manual_seed(0)
    rollout = env.rollout(10)
    env.close()
    return rollout["pixels"].numpy().tobytes() + rollout["next", "state"].numpy().tobytes()


@pytest.mark.process
def test_bit_identical_in_another_process() -> None:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:  # a server that has drawn nothing yet
        assert pool.map(fingerprint, [0]) == [fingerprint(0)]


def test_seed_worker_and_episode_give_the_goal() -> None:
    def goal(seed: int, worker: int, episode: int) -> bytes:
        return Simulator("reach", seed, worker, "fresh").reset(episode)[-3:].tobytes()

    goals = [goal(s, w, e) for s in (0, 1) for w in (0, 1) for e in (0, 1)]
    assert len(set(goals)) == 8
    assert goal(1, 0, 1) == goals[5]


def test_seek_and_first_episode_reach_the_environment() -> None:
    env = make_env("reach", pixels=False)
    states = [env.reset()["state"] for _ in range(4)]
    env.seek(2)
    assert torch.equal(env.reset()["state"], states[2])
    assert torch.equal(env.reset()["state"], states[3])
    assert torch.equal(make_env("reach", pixels=False, first_episode=3).reset()["state"], states[3])
    assert callable(env.snapshot)


def test_fixed_goals_are_those_of_mt1() -> None:
    import pickle

    import metaworld

    tasks = metaworld.MT1("reach-v3", seed=4).train_tasks
    expected = {tuple(pickle.loads(task.data)["rand_vec"][-3:]) for task in tasks}
    simulator = Simulator("reach", 4, 0, "fixed")
    drawn = [tuple(simulator.reset(episode)[-3:]) for episode in range(20)]
    simulator.worker = 1
    drawn += [tuple(simulator.reset(episode)[-3:]) for episode in range(20)]
    assert set(drawn) <= expected
    assert 15 < len(set(drawn)) <= 40
    fresh = Simulator("reach", 4, 0, "fresh")
    assert not {tuple(fresh.reset(e)[-3:]) for e in range(5)} & expected


def test_episodes_are_truncated_and_never_terminated() -> None:
    env = make_env("reach", pixels=False, episode_length=12, action_repeat=3)
    rollout = env.rollout(100)
    assert rollout["next", "truncated"].flatten().tolist() == [False] * 3 + [True]
    assert torch.equal(rollout["next", "done"], rollout["next", "truncated"])
    assert not rollout["next", "terminated"].any()


def test_the_longest_episode_can_be_played() -> None:
    rollout = make_env("reach", pixels=False, episode_length=500).rollout(1000)
    assert rollout.shape == (250,)


def test_rewards_are_summed_over_the_repeat() -> None:
    single, double = (MetaWorld("reach", pixels=False, action_repeat=n) for n in (1, 2))
    single.reset()
    double.reset()
    for move in actions(5):
        rewards = [single.step(move)[1] for _ in range(2)]
        assert double.step(move)[1] == sum(rewards)


def test_success_at_any_step_of_the_repeat_and_its_bonus(monkeypatch: pytest.MonkeyPatch) -> None:
    env = MetaWorld("reach", pixels=False, action_repeat=2, success_bonus=10.0)
    env.reset()
    state = np.zeros(39)
    script = iter([(state, 1.0, True), (state, 2.0, False), (state, 1.0, False), (state, 2.0, False)])
    monkeypatch.setattr(env._simulator, "step", lambda action: next(script))
    _, reward, _, _, info = env.step(actions(1)[0])
    assert (reward, info["success"].tolist()) == (13.0, [True])
    _, reward, _, _, info = env.step(actions(1)[0])
    assert (reward, info["success"].tolist()) == (3.0, [False])


def test_actions_are_clipped() -> None:
    env = MetaWorld("reach", pixels=False)
    env.reset()
    wide, _, _, _, _ = env.step(np.array([5.0, -5.0, 2.0, 9.0], np.float32))
    env.seek(0)
    env.reset()
    clipped, _, _, _, _ = env.step(np.array([1.0, -1.0, 1.0, 1.0], np.float32))
    assert np.array_equal(wide["state"], clipped["state"])
    with pytest.raises(FloatingPointError, match="not finite"):
        env.step(np.full(4, np.nan, np.float32))


def test_frames_are_the_last_pictures_and_begin_anew_at_a_reset() -> None:
    env = make_env("plate-slide", resolution=16, episode_length=16)
    check_env_specs(env)
    for _ in range(2):
        rollout = env.rollout(100)
        pixels = torch.cat([rollout["pixels"][:1]] * 2 + [rollout["pixels"], rollout["next", "pixels"][-1:]])
        windows = pixels.unfold(0, 3, 1).movedim(-1, 1).flatten(1, 2)  # [9, 3 * 3, 16, 16]
        assert torch.equal(rollout["frames"], windows[:-1])
        assert torch.equal(rollout["next", "frames"], windows[1:])
        assert not torch.equal(pixels[2], pixels[-1])
    assert rollout["pixels"].dtype == torch.uint8
    assert rollout["state"].shape == (8, 39)
    assert rollout["next", "reward"].dtype == torch.float32
    env.close()


def test_torchrl_collects() -> None:
    env = make_env("reach", pixels=False, episode_length=20)
    check_env_specs(env)
    collector = Collector(env, None, frames_per_batch=15, total_frames=30)
    batches = list(collector)
    collector.shutdown()
    done = torch.cat([batch["next", "done"] for batch in batches]).flatten()
    assert done.nonzero().flatten().tolist() == [9, 19, 29]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "dor-lock"}, "door-lock"),
        ({"episode_length": 201}, "multiple of action_repeat"),
        ({"episode_length": 502}, "500"),
        ({"episode_length": 0}, "multiple of action_repeat"),
        ({"action_repeat": 0}, "action_repeat"),
        ({"resolution": 4}, "8 or more"),
        ({"camera": "corner9"}, "corner, corner2"),
        ({"quality": "best"}, "fast, full"),
        ({"goals": "some"}, "fresh, fixed"),
        ({"frame_stack": 0}, "frame_stack"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_say_what_is_possible(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        make_env(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_task_names() -> None:
    assert len(task_names()) == 50
    assert resolve_task("door-lock") == resolve_task("door-lock-v3") == "door-lock-v3"


NO_LIBRARY = """
import ctypes
load = ctypes.CDLL.__init__
def refuse(self, name, *rest, **options):
    if "EGL" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *rest, **options)
ctypes.CDLL.__init__ = refuse
"""


def last_line(code: str, **variables: str) -> str:
    """Of what a fresh process prints to stderr, without the variables that choose a backend."""
    chosen = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    environment = {key: value for key, value in os.environ.items() if key not in chosen} | variables
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


# State, then pixels, without the seconds that importing torch takes.
SIMULATE_AND_RENDER = """
from mbrl.envs.rendering import Renderer
from mbrl.envs.simulator import Simulator
raw = Simulator("reach", 0, 0, "fresh").raw
Renderer(raw.model, raw.data)
"""


@pytest.mark.process
def test_without_opengl_state_works_and_pixels_are_one_clear_line() -> None:
    line = last_line(NO_LIBRARY + SIMULATE_AND_RENDER, MUJOCO_GL="egl")
    assert line.startswith("OSError: no OpenGL to render with (egl: ")
    assert line.endswith("run `mbrl doctor`")


@pytest.mark.process
def test_an_opengl_that_needs_a_display_is_refused_when_rendering() -> None:
    line = last_line(SIMULATE_AND_RENDER, MUJOCO_GL="glfw", DISPLAY="")
    assert line.startswith("OSError: no OpenGL to render with (glfw: it opens no window, which needs a display)")
    assert line.endswith("run `mbrl doctor`")


@pytest.mark.process
def test_without_a_device_to_draw_on() -> None:
    code = """
from mbrl.envs.rendering import Renderer
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><camera name="a"/></worldbody></mujoco>')
Renderer(model, mujoco.MjData(model), camera="a")
"""
    assert last_line(code, MUJOCO_EGL_DEVICE_ID="99").startswith("OSError: no OpenGL to render with (egl: ")


@pytest.mark.parametrize(
    ("camera", "mirrored", "axes"),
    [
        ("corner", False, ((0, 1), (1, 1))),
        ("corner", True, ((0, -1), (1, 1))),
        ("corner2", False, ((1, 1), (0, -1))),
        ("topview", False, ((0, 1), (1, 1))),
    ],
)
def test_it_says_which_actions_go_right_and_up_in_the_pictures(camera: str, mirrored: bool, axes: object) -> None:
    env = MetaWorld("reach", camera=camera, mirrored=mirrored, resolution=8)
    env.reset()
    assert env.picture_axes == axes
    env.close()
