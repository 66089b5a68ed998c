"""Imitation: its loss by hand, and a policy that does nothing else, from frames and from state."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.envs.toy import make_env
from mbrl.replay.episode_buffer import EpisodeBuffer
from policies.base import Policy
from policies.bc import BehaviourCloning, imitation
from policies.random import RandomPolicy
from tests.demonstrations import play_expert

SIZES = {
    "encoder_channels": [8, 16], "encoder_strides": [2, 2], "kernel_size": 3, "feature_size": 32, "hidden_size": 64,
    "learning_rate": 1e-3, "shift_pad": 1,
}  # fmt: skip
ACTION = Bounded(-1, 1, (2,))
STATE = Composite(state=Unbounded((4,)))


def test_imitation_by_hand():
    """Rows 0 and 2 were demonstrated: errors (0.5² + 1²) / 2 and 2² / 2, weight 0.3, mean |Q| (10 + 20 + 30) / 3."""
    batch = TensorDict(
        action=torch.tensor([[0.5, 0.0], [1.0, 1.0], [1.0, -1.0]]), cloning=torch.tensor([[0.3], [0.0], [0.3]])
    )
    action = torch.tensor([[0.0, 1.0], [0.0, 0.0], [-1.0, -1.0]], requires_grad=True)
    value = torch.tensor([[10.0], [-20.0], [30.0]], requires_grad=True)
    loss = imitation(action, batch, value)
    assert loss.item() == pytest.approx(0.3 * (0.625 + 2.0) / 2 * 20.0)
    loss.backward()
    assert value.grad is None, "values are not drawn to where imitation is easy"
    assert torch.equal(action.grad[1], torch.zeros(2)), "what was not demonstrated is not imitated"
    towards = torch.tensor([[0.5, 1.0], [9.0, 9.0], [-1.0, -0.5]])  # half a unit away, and half a unit
    assert imitation(action, batch.set("imitated", towards), value).item() == pytest.approx(0.3 * 0.125 * 20.0)
    batch["cloning"] = torch.zeros(3, 1)
    assert imitation(action, batch, value).item() == 0.0


def steering(policy: Policy, **settings) -> float:
    """Mean return of ten unseen episodes: ten times the distance gained, 3 to 4 where the agent arrives."""
    env = make_env(seed=1, episode_length=15, **settings)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return sum(float(env.rollout(15, policy.actor)["next", "reward"].sum()) for _ in range(10)) / 10


@pytest.mark.learns
@pytest.mark.parametrize("pixels", [False, pytest.param(True, marks=pytest.mark.slow)])  # 4 s
def test_learns_the_toy_from_demonstrations_alone(pixels: bool) -> None:
    torch.manual_seed(0)
    settings = {"pixels": pixels, "resolution": 24, "frame_stack": 1}
    buffer = EpisodeBuffer(1000, frame_stack=1, n_step=1)
    for records in play_expert(30, episode_length=15, **settings):
        buffer.extend(records[None])
    env = make_env(**settings)
    policy = BehaviourCloning(env.observation_spec, env.action_spec, **SIZES)
    before, chance = steering(policy, **settings), steering(RandomPolicy(env.observation_spec, env.action_spec))
    for _ in range(600):
        metrics = policy.clone(buffer.transitions(64))
    after = steering(policy, **settings)
    assert after > max(before, chance) + 2.0, (before, chance, after)
    assert metrics["cloning_loss"].ndim == 0 and not metrics["cloning_loss"].requires_grad


def test_nothing_but_demonstrations_teaches_it() -> None:
    policy = BehaviourCloning(STATE, ACTION, **SIZES)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    assert policy.update(TensorDict(state=torch.rand(8, 4), action=torch.rand(8, 2), batch_size=[8])) == {}
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_states_are_normalised_and_what_hardly_varies_is_not_blown_up() -> None:
    policy = BehaviourCloning(STATE, ACTION, **SIZES)
    rows = torch.randn(200, 4) * torch.tensor([100.0, 1.0, 1e-6, 0.0]) + torch.tensor([5.0, -3.0, 0.7, 0.2])
    policy.clone(TensorDict(state=rows, action=torch.zeros(200, 2), batch_size=[200]))
    seen = policy.net.encoder(rows)
    assert seen[:, :2].mean(0).abs().max() < 1e-4
    assert torch.allclose(seen[:, :2].std(0), torch.ones(2), atol=0.01)
    moved = policy.net.encoder(rows + torch.tensor([0.0, 0.0, 0.01, 0.01])) - seen
    assert torch.allclose(moved[:, 2:], torch.ones(200, 2), atol=1e-3), "a centimetre is one unit where nothing varies"


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="bc learns from state: this environment gives only pixels"):
        BehaviourCloning(Composite(pixels=Unbounded((3, 8, 8))), ACTION, **SIZES)
    with pytest.raises(ValueError, match="RandomPolicy imitates no demonstrations"):
        RandomPolicy(STATE, ACTION).clone(TensorDict())
    policy = BehaviourCloning(STATE, ACTION, **SIZES)
    bad = TensorDict(state=torch.full((4, 4), torch.nan), action=torch.zeros(4, 2), batch_size=[4])
    with pytest.raises(FloatingPointError, match="cloning_loss"):
        policy.clone(bad)
