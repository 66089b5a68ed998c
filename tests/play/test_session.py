"""A session without any web: real beside imagined, anchors, rewind, branch, back to reality, records."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbrl.data.episodes import check_records, read_episode, read_metadata
from mbrl.envs.metaworld import make_env as make_metaworld
from mbrl.envs.simulator_model import SimulatorModel
from mbrl.envs.toy import STRIDE, make_env
from mbrl.errors import UserError
from mbrl.play.recording import Recordings
from mbrl.play.session import Session
from mbrl.play.timeline import MAX_BRANCHES, Moment
from mbrl.prediction.recorded import load_episodes
from tests.play.worlds import LENGTH, SIDE, session
from tests.worldmodel.ivideogpt.test_model import make
from worldmodel.ivideogpt.segments import Conditioning
from worldmodel.rssm.model import RSSM

RIGHT, DOWN = [1.0, 0.0], [0.0, 1.0]


def imagined(moments: list[Moment]) -> list[bytes]:
    return [moment.imagined["pixels"].tobytes() for moment in moments]


def test_both_worlds_take_the_same_action() -> None:
    played = session()
    before = played.moment
    after = played.step([0.5, 0.0])
    assert after.real["state"][:2] == pytest.approx(before.real["state"][:2] + np.array([STRIDE / 2, 0]), abs=1e-6)
    assert after.imagined_reward == 0.5
    change = after.imagined["pixels"].astype(int) - before.real["pixels"]
    assert len(np.unique(change % 256)) == 1 and after.measures["doubt"] == change.flat[0] % 256
    assert (after.depth, after.since, after.anchor) == (1, 1, None)


def test_the_context_is_real_and_idle_after_a_reset() -> None:
    played = session(context_length=4)
    assert (played.first, played.cursor, len(played.moments)) == (3, 3, 4)
    assert played.moment.anchor == "real" and not any(moment.depth for moment in played.moments)
    assert all((moment.real["state"] == played.moment.real["state"]).all() for moment in played.moments)


def test_beyond_the_trained_horizon_the_newest_imagined_frames_are_the_context() -> None:
    played = session()
    for _ in range(7):
        played.step(RIGHT)
    moments = played.moments
    assert [moment.anchor for moment in moments[played.first :]] == ["real", *[None] * 4, "imagined", None, None]
    assert [moment.since for moment in moments[played.first :]] == [0, 1, 2, 3, 4, 5, 1, 2]
    assert played.moment.depth == 7
    context = played.model.starts[-1]  # type: ignore[attr-defined]
    anchor = played.first + 5
    assert (context["pixels"][0, -1].numpy() == moments[anchor].imagined["pixels"]).all()
    assert context["action"][0].tolist() == [RIGHT, [0.0, 0.0]]


def test_a_model_that_starts_from_snapshots_is_anchored_in_the_real_world() -> None:
    env = make_env(resolution=SIDE, snapshots=True)
    model = SimulatorModel(env.observation_spec, env.action_spec, env=make_env(resolution=SIDE, snapshots=True))
    model.max_horizon = 3
    played = Session(env, model)
    for _ in range(4):
        after = played.step(RIGHT)
        assert (after.imagined["pixels"] == after.real["pixels"]).all()
        assert after.imagined_reward == pytest.approx(after.reward, abs=1e-5)
    assert [moment.anchor for moment in played.moments] == ["real", None, None, "real", None]


@pytest.mark.parametrize("at", [3, 8, 12])
def test_a_rewound_world_goes_on_as_it_did(at: int) -> None:
    """The state of the model at any moment is the one that it had there, whether it was kept or not."""
    played = session()
    for number in range(14):
        played.step([number / 20, 0.0])
    first = imagined(played.moments)
    after = played.moments[at + 1]
    state = played._imagined.state(played.moments, at)
    _, predicted = played._imagined._advance(state, after)
    assert predicted["pixels"][0].numpy().tobytes() == first[at + 1]


def test_a_step_from_an_earlier_moment_makes_a_branch() -> None:
    played = session()
    for _ in range(6):
        played.step([0.1, 0.0])
    old = imagined(played.moments)
    played.rewind(4)
    assert len(played.branches) == 1
    played.step([0.0, 0.1])
    assert [branch.number for branch in played.branches] == [0, 1]
    branch = played.branches[1]
    assert (branch.parent, branch.fork, len(branch.moments), played.cursor) == (0, 4, 6, 5)
    assert imagined(played.branches[0].moments) == old
    straight = played.branches[0].moments[5].real["state"] - played.branches[0].moments[4].real["state"]
    down = branch.moments[5].real["state"] - branch.moments[4].real["state"]
    assert straight[:2] == pytest.approx([STRIDE / 10, 0], abs=1e-6)
    assert down[:2] == pytest.approx([0, STRIDE / 10], abs=1e-6)
    assert played.select(0) is played.branches[0].moments[5]
    played.close_branch(1)
    assert [branch.number for branch in played.branches] == [0]


def test_branches_are_bounded_and_the_current_one_stays() -> None:
    played = session()
    played.step(RIGHT)
    for _ in range(MAX_BRANCHES - 1):
        played.branch(1)
    with pytest.raises(UserError, match="close one first"):
        played.branch(1)
    with pytest.raises(UserError, match="select another one"):
        played.close_branch(played.branch_number)
    with pytest.raises(UserError, match="no branch 99"):
        played.select(99)


def test_back_to_reality_starts_from_the_real_frames() -> None:
    played = session()
    for _ in range(3):
        played.step(RIGHT)
    old = played.moment
    moment = played.back_to_reality()
    assert (moment.imagined["pixels"] == moment.real["pixels"]).all() and (moment.depth, moment.anchor) == (0, "real")
    after = played.step(RIGHT)
    context = played.model.starts[-1]["pixels"][0].numpy()  # type: ignore[attr-defined]
    assert (context == np.stack([row.real["pixels"] for row in played.moments[-3:-1]])).all()
    assert after.depth == 1 and old.depth == 3  # Other branches may hold the old moment.


def test_the_episode_ends_and_goes_on_after_a_rewind() -> None:
    played = session()
    while not played.moment.over:
        played.step(RIGHT)
    assert played.cursor == LENGTH
    with pytest.raises(UserError, match="the real episode is over after 40 steps"):
        played.step(RIGHT)
    played.rewind(LENGTH - 1)
    assert played.step(DOWN).truncated


@pytest.mark.parametrize("action", [[1.0], [1.0, float("nan")], [[1.0, 1.0]], [1.0, float("inf")]])
def test_wrong_actions_are_refused(action: Any) -> None:
    played = session()
    with pytest.raises(UserError, match="an action has 2 finite numbers"):
        played.step(action)
    assert played.cursor == 1


@pytest.mark.parametrize("index", [-1, 0, 3])
def test_there_is_no_rewinding_into_the_context_or_the_future(index: int) -> None:
    played = session()
    played.step(RIGHT)
    with pytest.raises(UserError, match="there are 1 to 2"):
        played.rewind(index)


def test_resets_are_numbered() -> None:
    played = session()
    goals = [played.reset(goal).real["state"][2:].tolist() for goal in (5, None, 5)]
    assert goals[0] == goals[2] != goals[1] and played.goal == 6


def test_temperature_is_that_of_the_steps_to_come() -> None:
    played = session()
    played.step(RIGHT)
    played.set_temperature(0.5)
    played.step(RIGHT)
    assert [moment.temperature for moment in played.moments[2:]] == [1.0, 0.5]
    played._imagined.state(played.moments, 2)
    assert played.model.temperature == 0.5
    with pytest.raises(UserError, match="must be 0 to 10"):
        played.set_temperature(float("nan"))
    with pytest.raises(UserError, match="has no temperature"):
        session(temperature=None).set_temperature(1.0)


def test_frames_are_stacked_as_an_environment_stacks_them() -> None:
    env = make_env(resolution=SIDE, frame_stack=3)
    env.unwrapped.seek(0)  # type: ignore[attr-defined]
    step = env.reset()
    played = session(context_length=1)
    assert (played.frames(3) == step["frames"].numpy()).all()
    for _ in range(2):
        step = env.step(step.set("action", torch.tensor(RIGHT)))["next"]
        played.step(RIGHT)
        assert (played.frames(3) == step["frames"].numpy()).all()
    assert (played.frames(1, imagined=True) == played.moment.imagined["pixels"]).all()


def test_saved_episodes_are_read_by_every_reader(tmp_path: Path) -> None:
    played = session()
    with pytest.raises(UserError, match="nothing to save"):
        session(context_length=1).records()
    while not played.moment.success and not played.moment.over:
        state = played.moment.real["state"]
        played.step(np.sign(state[2:] - state[:2]) * (np.abs(state[2:] - state[:2]) > STRIDE / 2))
    recordings = Recordings(tmp_path / "play", {"task": "toy", "action_repeat": 1}, success_bonus=2.0)
    path = recordings.save_episode(played.moments)
    assert recordings.save_video(played.moments, 10).name == "episode-00001.mp4"
    assert recordings.video("episode-00001.mp4") and recordings.video("../config.yaml") is None
    records = read_episode(path)
    check_records(records, "it")
    assert len(records) == len(played.moments) and read_metadata(path)["task"] == "toy"
    assert (records["action"][1:-1].numpy() == np.stack([row.action for row in played.moments[2:]])).all()
    assert records["success"][-2] and records["truncated"][:, 0].tolist() == [False] * (len(records) - 2) + [
        True,
        False,
    ]
    assert float(records["reward"][-2]) == pytest.approx(played.moment.reward - 2.0)
    (whole,) = load_episodes(tmp_path / "play", SIDE)
    assert (whole["pixels"] == records["pixels"]).all()


def test_ivideogpt_is_steered_with_its_cache_forked() -> None:
    played = Session(make_env(resolution=16), make().eval())
    for _ in range(played.model.max_horizon + 2):
        after = played.step(RIGHT)
    assert not after.measures and after.imagined_reward is not None
    straight = imagined(played.moments)
    played.rewind(3)
    played.set_temperature(0.0)
    played.step(DOWN)
    assert imagined(played.branches[0].moments) == straight and played.horizon == played.model.max_horizon


def test_a_model_that_reads_the_initial_frame_is_given_it_wherever_the_session_starts() -> None:
    played = session(context_keys=("initial",))
    first = played.moments[0].real["pixels"]
    for _ in range(7):
        played.step(RIGHT)
    assert played.moments[played.first + 5].anchor == "imagined", "frames are all that it starts from"
    starts = played.model.starts  # type: ignore[attr-defined]
    assert all((start["initial"].numpy() == first).all() and len(start["initial"][0]) == 2 for start in starts)
    given = np.full_like(first, 7)
    played.start(played.moment.snapshot, np.zeros((0, 2), np.float32), given)
    played.step(RIGHT)
    assert (starts[-1]["initial"].numpy() == given).all()
    played.start(played.moment.snapshot, np.zeros((0, 2), np.float32))
    played.step(RIGHT)
    assert (starts[-1]["initial"].numpy() == played.moments[0].real["pixels"]).all()


def test_ivideogpt_is_steered_in_the_context_of_an_initial_frame() -> None:
    played = Session(make_env(resolution=16), make(conditioning=Conditioning(initial=True)).eval())
    for _ in range(played.model.max_horizon + 2):
        after = played.step(RIGHT)
    assert after.imagined["pixels"].shape == (3, 16, 16) and after.since == 2


def test_a_model_without_actions_imagines_all_the_same() -> None:
    env = make_env(resolution=16)
    model = make(conditioning=Conditioning(actions=False)).eval()
    assert model.action_dim == 0 and Session(env, model).step(RIGHT).depth == 1


def test_the_rssm_is_steered() -> None:
    env = make_env(resolution=16)
    model = RSSM(env.observation_spec, env.action_spec, pixels=True, units=32, context_length=3).eval()
    played = Session(env, model)
    assert played.first == 2 and played.horizon is None
    for _ in range(3):
        after = played.step(RIGHT)
    assert after.imagined["pixels"].shape == (3, 16, 16) and after.anchor is None


def test_models_that_do_not_fit_are_refused() -> None:
    for attributes, message in [
        ({"observations": ("state",)}, "predicts states"),
        ({"goal_conditioned": True}, "goal frame"),
        ({"resolution": 64}, "made for 64 pixels, and the environment has 16"),
        ({"action_dim": 7}, "actions of 7, and the environment has 2"),
    ]:
        with pytest.raises(UserError, match=message):
            session(**attributes)


def test_meta_world_goes_back_exactly() -> None:
    env = make_metaworld("window-close", 0, resolution=SIDE)
    played = Session(env, _meta_world_model())
    for _ in range(3):
        played.step([0.5, 0.5, -0.5, 1.0])
    first = [moment.real["state"].tobytes() for moment in played.moments]
    played.rewind(played.first)
    for _ in range(3):
        played.step([0.5, 0.5, -0.5, 1.0])
    assert [moment.real["state"].tobytes() for moment in played.moments] == first
    played.close()


def _meta_world_model() -> Any:
    from tests.play.worlds import Drawing

    model = Drawing()
    model.action_dim = 4
    return model
