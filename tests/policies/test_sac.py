"""SAC: losses and gradients against TorchRL's, the temperature, targets, acting, bad specs, resume."""

import copy
import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss

from policies.networks import RunningNorm, perceptron
from policies.residual import bro_net, simba
from policies.sac import SAC, squash

ACTIONS = Bounded(-1.0, 1.0, (2,))
STATE = Composite(state=Unbounded(5))
SMALL = partial(perceptron, hidden_sizes=(16, 16))


def small(**changes: object) -> SAC:
    networks = {"actor_network": SMALL, "critic_network": partial(SMALL, layer_norm=True)}
    return SAC(STATE, ACTIONS, **(networks | changes))


def random_batch(rows: int = 32) -> TensorDict:
    following = TensorDict(
        state=torch.randn(rows, 5), reward=torch.rand(rows, 1), terminated=torch.rand(rows, 1) < 0.3, batch_size=[rows]
    )
    following["done"] = following["terminated"].clone()
    action = torch.rand(rows, 2) * 1.8 - 0.9
    return TensorDict(
        state=torch.randn(rows, 5), action=action, gamma=torch.full((rows, 1), 0.9), next=following, batch_size=[rows]
    )


class Gaussian(nn.Module):
    """Mean and standard deviation as TorchRL's actor wants them."""

    def __init__(self, policy: SAC) -> None:
        super().__init__()
        self.actor = policy.actor

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor.gaussian(state)
        return mean, log_std.exp()


class Value(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.network(torch.cat((state, action), dim=-1))
        return value


def torchrl_loss(policy: SAC) -> SACLoss:
    """TorchRL's losses of copies of the policy's networks."""
    policy = copy.deepcopy(policy)
    module = TensorDictModule(Gaussian(policy), in_keys=["state"], out_keys=["loc", "scale"])
    actor = ProbabilisticActor(
        module, in_keys=["loc", "scale"], distribution_class=TanhNormal, spec=ACTIONS, return_log_prob=True
    )
    critics = [ValueOperator(Value(network), in_keys=["state", "action"]) for network in policy.critic.networks]
    loss = SACLoss(
        actor,
        critics,
        loss_function="l2",
        alpha_init=policy.log_temperature.exp().item(),
        target_entropy=policy.target_entropy,
    )
    loss.make_value_estimator(gamma=0.9)
    return loss


def ours(policy: SAC, batch: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of critics, actor and temperature before any step, in TorchRL's order of draws."""
    critic = policy.critic_loss(policy.critic(batch["state"], batch["action"]), policy.target(batch))
    actor, entropy = policy.actor_losses(batch["state"], batch)
    return critic, actor, policy.temperature_loss(entropy)


def leaves(parameters: TensorDictBase) -> list[Tensor]:
    """In the order in which modules hold them."""
    return list(parameters.values(include_nested=True, leaves_only=True))


def test_losses_and_gradients_equal_torchrl() -> None:
    torch.manual_seed(0)
    policy, batch = small(temperature=0.3), random_batch()
    oracle = torchrl_loss(policy)
    torch.manual_seed(1)
    expected = oracle(batch.clone())
    torch.manual_seed(1)
    losses = ours(policy, batch)
    names = ("loss_qvalue", "loss_actor", "loss_alpha")
    for loss, name in zip(losses, names, strict=True):
        torch.testing.assert_close(loss, expected[name])
    losses[0].backward()
    critics = zip(*(network.parameters() for network in policy.critic.networks), strict=True)
    found = [torch.stack([value.grad for value in both]) for both in critics]
    found += torch.autograd.grad(losses[1], list(policy.actor.parameters()))
    found += torch.autograd.grad(losses[2], policy.log_temperature)
    sum(expected[name] for name in names).backward()
    theirs = [*leaves(oracle.qvalue_network_params), *leaves(oracle.actor_network_params), oracle.log_alpha]
    for gradient, parameter in zip(found, theirs, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_density_of_a_draw_is_that_of_the_squashed_gaussian() -> None:
    """The density integrates to 1 over (-1, 1), also where the mean lies far out."""
    for centre, width in ((0.3, 0.5), (2.0, 1.0)):
        before = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)[:, None]
        mean, log_std = torch.full_like(before, centre), torch.full_like(before, math.log(width))
        action, log_prob = squash(mean, log_std, (before - centre) / width)
        assert float(torch.trapezoid(log_prob.exp().flatten(), action.flatten())) == pytest.approx(1.0, abs=1e-3)


def test_density_stays_finite_where_tanh_saturates() -> None:
    _, log_prob = squash(torch.tensor([[20.0]]), torch.tensor([[0.0]]), torch.tensor([[0.0]]))
    # log N(0) + 2 (20 - log 2): the slope of tanh at z is 4 exp(-2 z) far out
    assert float(log_prob) == pytest.approx(-0.5 * math.log(2 * math.pi) + 2 * (20 - math.log(2)), rel=1e-5)


class Constant(nn.Module):
    """Critics whose values can be worked out by hand: 3 and 2 times (the sum of the actions + 1)."""

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        value = action.sum(dim=-1, keepdim=True) + 1.0
        return torch.stack((3.0 * value, 2.0 * value))


def test_target_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small(temperature=0.5)
    policy.target_critic = Constant()
    drawn = (torch.full((2, 2), 0.25), torch.full((2, 1), 4.0))
    monkeypatch.setattr(policy.actor, "sample", lambda features: drawn)
    batch = random_batch()[:2]
    batch["next", "reward"], batch["next", "terminated"] = torch.full((2, 1), 5.0), torch.tensor([[False], [True]])
    # The lower critic: 2 * (0.25 + 0.25 + 1) = 3, less 0.5 * 4 for the entropy. Terminated: the reward alone.
    torch.testing.assert_close(policy.target(batch), torch.tensor([[5.0 + 0.9 * (3.0 - 2.0)], [5.0]]))


@pytest.mark.parametrize("target_entropy", [-50.0, 50.0])
def test_temperature_moves_towards_the_target_entropy(target_entropy: float) -> None:
    torch.manual_seed(0)
    policy = small(target_entropy=target_entropy)
    before = policy.log_temperature.item()
    entropy = float(policy.update(random_batch())["entropy"])
    assert (policy.log_temperature.item() > before) == (entropy < target_entropy)


def test_target_entropy_is_half_a_nat_below_zero_for_each_action() -> None:
    assert small().target_entropy == -1.0
    assert small(target_entropy=-2.0).target_entropy == -2.0


def test_update_moves_what_it_should() -> None:
    torch.manual_seed(0)
    policy = small(target_rate=0.25, critics=3)
    before = copy.deepcopy(policy)
    metrics = policy.update(random_batch())
    assert set(metrics) == {"critic_loss", "actor_loss", "q", "target_q", "entropy", "temperature"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    for name, moved in policy.named_parameters():
        assert not torch.equal(moved, before.get_parameter(name)), name
    for name, target in policy.target_critic.named_parameters():
        expected = before.target_critic.get_parameter(name).lerp(policy.critic.get_parameter(name), 0.25)
        torch.testing.assert_close(target, expected)


def test_the_actor_loss_trains_no_critic() -> None:
    policy = small()
    frozen = {name: value.clone() for name, value in policy.critic.named_parameters()}
    policy._update_actor(torch.rand(4, 5), TensorDict())
    for name, value in policy.critic.named_parameters():
        assert torch.equal(value, frozen[name]) and value.grad is None, name


def test_actor_explores_within_bounds_unless_told_not_to() -> None:
    policy = small()
    step = TensorDict(state=100.0 * torch.randn(50, 5), batch_size=[50])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = policy.actor(step.clone())["action"], policy.actor(step.clone())["action"]
        single = policy.actor(step[0].clone())["action"]
    assert torch.equal(first, second)
    torch.testing.assert_close(single, first[0])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        drawn = policy.actor(step.clone())["action"]
    assert drawn.shape == (50, 2) and not torch.equal(drawn, first)
    assert bool(drawn.abs().le(1.0).all()) and bool(first.abs().le(1.0).all())


def test_states_are_normalised_by_what_was_replayed() -> None:
    torch.manual_seed(0)
    policy, batch = small(normalizer=RunningNorm), random_batch()
    batch["state"] = 3.0 + 2.0 * batch["state"]
    policy.update(batch)
    torch.testing.assert_close(policy.actor.normalizer.mean, batch["state"].mean(0))
    features = policy.actor.encode(batch)
    torch.testing.assert_close(features.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(5))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        acted = policy.actor(batch.select("state"))["action"]
    torch.testing.assert_close(acted, torch.tanh(policy.actor.gaussian(features)[0]))


def test_imagined_states_do_not_change_the_normalisation() -> None:
    torch.manual_seed(0)
    policy, real, batch = small(normalizer=RunningNorm), small(normalizer=RunningNorm), random_batch()
    rows = len(batch) // 2
    batch["imagined"] = torch.arange(len(batch))[:, None] >= rows
    batch["state"][rows:] = 1e3
    for _ in range(2):
        policy.update(batch)
        real.update(batch[:rows].exclude("imagined"))
    for name, value in real.actor.normalizer.state_dict().items():
        torch.testing.assert_close(policy.actor.normalizer.state_dict()[name], value)


@pytest.mark.parametrize("network", [bro_net, simba])
def test_learns_with_residual_networks(network: object) -> None:
    torch.manual_seed(0)
    part = partial(network, width=16, blocks=1)
    policy, batch = small(actor_network=part, critic_network=part, learning_rate=3e-3), random_batch()
    batch["next", "terminated"].fill_(True)  # values are then the rewards
    first = policy.update(batch)["critic_loss"]
    for _ in range(100):
        last = policy.update(batch)["critic_loss"]
    assert last < 0.2 * first


def test_resumes_to_the_bit() -> None:
    torch.manual_seed(1)
    batch = random_batch()
    policy = small(normalizer=RunningNorm)
    policy.update(batch)
    saved = copy.deepcopy((policy.state_dict(), {name: opt.state_dict() for name, opt in policy.optimizers.items()}))
    state = torch.get_rng_state()
    policy.update(batch)
    resumed = small(normalizer=RunningNorm)
    resumed.load_state_dict(saved[0])
    for name, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(saved[1][name])
    torch.set_rng_state(state)
    resumed.update(batch)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_nan_stops_the_run() -> None:
    batch = random_batch()
    batch["next", "reward"][0] = float("nan")
    with pytest.raises(FloatingPointError, match="critic_loss = nan"):
        small().update(batch)


def test_needs_a_state_bounded_actions_and_sensible_numbers() -> None:
    frames = Composite(frames=Bounded(0, 255, (9, 16, 16), dtype=torch.uint8))
    with pytest.raises(ValueError, match="sac learns from state: this environment gives only frames"):
        SAC(frames, ACTIONS)
    with pytest.raises(ValueError, match="flat state"):
        SAC(Composite(state=Unbounded((2, 5))), ACTIONS)
    with pytest.raises(ValueError, match="sac needs continuous actions in \\[-1, 1\\]"):
        SAC(STATE, Bounded(-2.0, 2.0, (2,)))
    for wrong in ({"critics": 0}, {"temperature": 0.0}, {"value_scale": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            small(**wrong)
