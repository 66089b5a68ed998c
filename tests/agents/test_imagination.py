"""Imagination is an env, and what it hands back is aligned with the reality it branched from."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import Bounded
from torchrl.envs.utils import check_env_specs

from mbrl.agents.imagination import Imagination
from mbrl.envs.imagined import ImaginationEnv
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from tests.fakes import SIZE, BrightnessPolicy, CountingWorldModel, episode

ACTION = Bounded(-1, 1, (2,))


@pytest.fixture
def replay() -> Replay:
    replay = Replay(200, frame_stack=3, n_step=3, gamma=0.9)
    for number in range(4):
        replay.online.extend(episode(number)[None])
    return replay


def make_imagination(replay: Replay, **options) -> Imagination:
    settings = {"rollouts": 4, "horizon": 5, "retain": 2, "resolution": SIZE, "action_spec": ACTION}
    settings["policy"] = BrightnessPolicy()
    return Imagination(CountingWorldModel(), replay=replay, **{**settings, **options})


def as_stacked(levels: torch.Tensor) -> bool:
    """Whether frames [..., K] follow each other, those before an episode's first being copies of it."""
    first = torch.stack([episode(number)["pixels"][0, 0, 0, 0] for number in range(4)])
    later, same = levels.diff(dim=-1) == 1, levels.diff(dim=-1) == 0
    return bool((later | (same & torch.isin(levels[..., :-1], first))).all())


def test_is_an_env_with_the_real_keys(replay):
    env = make_imagination(replay).env
    check_env_specs(env)
    rollout = env.rollout(20)
    assert rollout.batch_size == (4, 5), "the horizon ends a rollout"
    assert rollout["next", "truncated"][:, -1].all() and not rollout["next", "truncated"][:, :-1].any()
    assert not rollout["next", "terminated"].any()


def test_stacks_begin_with_real_frames(replay):
    rollout = make_imagination(replay).env.rollout(3)
    newest = rollout["frames"][:, 0, ::3, 0, 0].int()
    assert as_stacked(newest), "history, then the branch state, as the episode had them"
    assert torch.equal(rollout["frames"][:, 1:], rollout["next", "frames"][:, :-1])
    assert torch.equal(rollout["frames"][..., -3:, :, :], rollout["pixels"])


@pytest.mark.parametrize("horizon", [3, {"first": 1, "last": 4, "from_env_steps": 0, "to_env_steps": 10}])
def test_no_rollout_goes_beyond_the_time_limit(replay, horizon):
    length = len(episode(0)) - 1  # steps
    made = make_imagination(replay, rollouts=200, horizon=horizon, episode_steps=length)
    for env_steps, steps in ((0, 3), (10, 3)) if horizon == 3 else ((0, 1), (10, 4)):
        made.run(env_steps)
        branched = made.env.history_records["pixels"][:, -1, 0, 0, 0]
        drawn = {int(each) for number in range(4) for each in episode(number)["pixels"][: length - steps + 1, 0, 0, 0]}
        assert set(branched.tolist()) == drawn


def test_imagined_rewards_are_summed_over_steps_of_their_own(replay):
    batches = []
    for n_step in (None, 1, 5):
        made = make_imagination(replay, n_step=n_step)
        made.run()
        batch = made.transitions(300)
        grown = batch["next", "frames"][:, -1, 0, 0].int() - batch["frames"][:, -1, 0, 0].int()
        batches.append(set(grown.tolist()))
    assert batches == [{1, 2, 3}, {1}, {1, 2, 3, 4, 5}]


def test_imagined_transitions_are_aligned(replay):
    """The action chosen at an imagined frame is the one whose reward and next frame stand beside it."""
    imagination = make_imagination(replay)
    imagination.run()
    assert len(imagination) == 4 * 5
    batch = imagination.transitions(200)
    level = batch["frames"][:, -1, 0, 0].float()
    assert torch.allclose(batch["action"], (level / 255)[:, None].expand(-1, 2))
    m = (batch["next", "frames"][:, -1, 0, 0].float() - level).round().int()
    assert set(m.tolist()) == {1, 2, 3}
    for row, steps in zip(batch, m.tolist(), strict=True):
        first = row["action"][0].item()
        expected = sum(0.9**k * (first + k / 255) for k in range(steps))
        assert row["next", "reward"].item() == pytest.approx(expected, rel=1e-4)
        assert row["gamma"].item() == pytest.approx(0.9**steps)
    assert (batch["next", "reward"] < 1000).all(), "no real reward is passed off as imagined"


def test_old_rollouts_leave(replay):
    imagination = make_imagination(replay)
    for _ in range(5):
        imagination.run()
    assert len(imagination) == 2 * 4 * 5


def test_defect_of_dividing_twice_is_off_unless_asked_for(replay):
    sane, blind = make_imagination(replay), make_imagination(replay, divide_pixels_twice=True)
    for imagination in (sane, blind):
        imagination.run()
    assert sane.transitions(8)["frames"].dtype == torch.uint8
    assert 0 < blind.transitions(8)["frames"].max() <= 1


def test_impossible_horizon(replay):
    with pytest.raises(ValueError, match="can predict 1 to 10 steps"):
        make_imagination(replay, horizon=11)


def test_history_covers_model_and_stack(replay):
    model = CountingWorldModel()
    model.context_length = 4
    options = {"action_spec": ACTION, "batch_size": 2, "horizon": 3, "resolution": SIZE, "frame_stack": 2}
    env = ImaginationEnv(model, replay.starts, **options)
    assert env.history == 4 and env.reset()["frames"].shape == (2, 6, SIZE, SIZE)


class RememberingPolicy(BrightnessPolicy):
    """Says of each action how likely it was: minus the brightness of the newest frame."""

    learns_from = "rollouts"

    def __init__(self) -> None:
        super().__init__()
        bright = TensorDictModule(
            lambda frames: -frames[..., -1, :1, 0].float(), in_keys=["frames"], out_keys=["action_log_prob"]
        )
        self.actor = TensorDictSequential(self.actor, bright)


def imagine_whole(replay: Replay, **options) -> Imagination:
    settings = {"rollouts": 4, "horizon": 5, "retain": 2, "resolution": SIZE, "action_spec": ACTION}
    return Imagination(CountingWorldModel(), RememberingPolicy(), replay, **{**settings, **options})


def test_whole_rollouts_begin_with_the_real_state_and_are_aligned(replay):
    imagination = imagine_whole(replay)
    imagination.run()
    batch = imagination.rollouts(3)
    assert batch.batch_size == (3, 6)
    levels = batch["frames"][..., ::3, 0, 0].int()  # [B, H + 1, K]: the newest frame last
    assert as_stacked(levels) and (levels[..., -1].diff(dim=1) == 1).all()
    starts = batch["frames"][:, 0]
    real = replay.starts(500, 3)["pixels"].flatten(1, 2)
    assert any(torch.equal(starts[0], frames) for frames in real), "a real state, as it was"
    level, taken = levels[:, :-1, -1:].float(), batch[:, :-1]
    torch.testing.assert_close(taken["action"], (level / 255).expand(-1, -1, 2))
    torch.testing.assert_close(taken["action_log_prob"], -level)
    torch.testing.assert_close(taken["next", "reward"], taken["action"][..., :1])
    assert not batch["next", "terminated"].any()


def test_rollouts_are_different_ones_or_all_there_are(replay):
    imagination = imagine_whole(replay, retain=3)
    for _ in range(2):
        imagination.run()
    assert len(imagination.rollouts(100)) == 8
    again = imagine_whole(replay, retain=3)
    again.buffer.load_state_dict(imagination.buffer.state_dict())
    torch.manual_seed(0)
    ours = imagination.rollouts(5)
    torch.manual_seed(0)
    assert (again.rollouts(5) == ours).all()


@pytest.mark.parametrize("option", [{"divide_pixels_twice": True}, {"weigh_by": {"doubt": 1.0}}])
def test_what_concerns_transitions_is_refused_for_rollouts(replay, option):
    model = CountingWorldModel()
    model.uncertainty_keys = ("doubt",)
    settings = {"rollouts": 4, "horizon": 5, "retain": 2, "resolution": SIZE, "action_spec": ACTION}
    with pytest.raises(ValueError, match="learns from whole rollouts"):
        Imagination(model, RememberingPolicy(), replay, **settings, **option)


class NoisyPolicy(BrightnessPolicy):
    """Records the limit of its noise while it acts."""

    limit: float | None = None

    @contextmanager
    def limited_noise(self, std: float | None) -> Iterator[None]:
        self.limit = std
        yield
        self.limit = None


def test_the_noise_of_imagined_actions_is_limited(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="noise that BrightnessPolicy does not have"):
        make_imagination(replay, noise=0.2)
    made = make_imagination(replay, noise=0.2, policy=NoisyPolicy())
    seen, rollout = [], made.env.rollout
    monkeypatch.setattr(made.env, "rollout", lambda *a, **k: seen.append(made.policy.limit) or rollout(*a, **k))
    made.run()
    assert seen == [0.2] and made.policy.limit is None
