"""DreamerV3's actor-critic: known answers, what the gradients reach, and going on from a state."""

import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.actor_critic import ActorCritic, clipped_gain
from policies.returns import continues, discounted_weight

ACTIONS = Bounded(-1.0, 1.0, (2,))
SPECS = Composite(frames=Bounded(0, 255, (9, 16, 16), dtype=torch.uint8), state=Unbounded((3,)))
B, H, D = 4, 5, 6


def small(**changes: object) -> ActorCritic:
    settings: dict[str, object] = {"observation": "features", "feature_size": D, "hidden_size": 16, "bins": 41}
    pixels = {"encoder_channels": (8, 8), "encoder_strides": (2, 2)}
    return ActorCritic(SPECS, ACTIONS, **(settings | pixels | {"warmup": 0, "learning_rate": 1e-3} | changes))


def rollouts(policy: ActorCritic) -> TensorDict:
    """[B, H + 1] rows of features or frames whose actions the policy took itself."""
    shape = [B, H + 1]
    batch = TensorDict(
        features=torch.randn(*shape, D),
        frames=torch.randint(0, 256, (*shape, 9, 16, 16), dtype=torch.uint8),
        next=TensorDict(
            reward=torch.randn(*shape, 1), terminated=torch.zeros(*shape, 1, dtype=torch.bool), batch_size=shape
        ),
        batch_size=shape,
    )
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return policy.actor(batch)


def imagined_at(policy: ActorCritic, state: torch.Tensor) -> TensorDict:
    """Rollouts [B] through given states [B, H + 1, 3], without rewards."""
    shape = state.shape[:2]
    flags = torch.zeros(*shape, 1, dtype=torch.bool)
    after = TensorDict(reward=torch.zeros(*shape, 1), terminated=flags, batch_size=shape)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        batch = policy.actor(TensorDict(state=state, next=after, batch_size=shape))
    batch.batch_size = shape[:1]
    return batch


def give_the_critic_an_opinion(policy: ActorCritic) -> None:
    """Values of a few units: the outer ones of its bins lie at e^20."""
    last, bins = policy.critic[-1], policy.two_hot.num_bins
    torch.nn.init.normal_(last.weight, std=0.5)
    with torch.no_grad():
        last.bias.copy_(-(torch.arange(bins) - bins // 2).square())
    policy.slow_critic.load_state_dict(policy.critic.state_dict())


def test_a_fresh_critic_knows_nothing_and_a_fresh_actor_tries_everything() -> None:
    torch.manual_seed(0)
    policy = small()
    batch = rollouts(policy)
    assert (policy.two_hot.decode(policy.critic(batch["features"])) == 0).all()
    assert batch["action"].abs().max() <= 1
    assert policy.actor.distribution(torch.randn(1000, D)).scale.mean().item() == pytest.approx(0.89, abs=0.02)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = policy.actor(batch.clone()), policy.actor(batch.clone())
    assert torch.equal(first["action"], second["action"])


def test_without_exploration_it_acts_by_the_mean_of_what_it_draws() -> None:
    """Truncation draws the mean of the action towards 0, far from the mean before it."""
    torch.manual_seed(0)
    policy = small()
    with torch.no_grad():
        policy.actor.head[-1].bias.copy_(torch.tensor([2.0, -2.0, 0.0, 0.0]))  # before truncation: .96 and -.96
    batch = TensorDict(features=torch.zeros(1, D), batch_size=[1])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        drawn = policy.actor(batch.expand(20_000).clone())["action"].mean(0)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        action = policy.actor(batch)["action"][0]
    torch.testing.assert_close(action, drawn, atol=0.02, rtol=0)
    assert 0.2 < action[0] < 0.5


def test_weights_by_hand() -> None:
    alive = torch.tensor([[1.0, 0.5, 1.0, 0.0]])
    assert discounted_weight(alive, 0.5).tolist() == [[1.0, 0.25, 0.125, 0.0]]


def test_a_rollout_weighs_nothing_after_it_terminated() -> None:
    terminated = torch.tensor([[[False], [True], [False]]])
    batch = TensorDict(next=TensorDict(terminated=terminated, batch_size=[1, 3]), batch_size=[1, 3])
    assert continues(batch).tolist() == [[1.0, 1.0, 0.0]]
    batch["continue"] = torch.tensor([[[0.9], [0.8], [0.7]]])
    assert continues(batch).tolist() == [[pytest.approx(0.9), pytest.approx(0.8), pytest.approx(0.7)]]


def test_clipping_by_hand() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(clipped_gain(ratio, advantage, 0.2), torch.tensor([0.5, -0.8, 1.2, -1.5]))


def test_ratio_is_one_for_fresh_rollouts_and_the_gradient_is_reinforce() -> None:
    """With the log-probability at collection or without, as with the score function itself."""
    torch.manual_seed(0)
    policy = small(entropy=0.0)
    give_the_critic_an_opinion(policy)
    batch = rollouts(policy)
    losses = policy.losses(batch)
    head = list(policy.actor.head.parameters())
    ratio_gradient = torch.autograd.grad(losses.actor, head)
    without = torch.autograd.grad(policy.losses(batch.exclude("action_log_prob")).actor, head)
    features, action = batch["features"][:, :-1], batch["action"][:, :-1]
    score = policy.actor.distribution(features).log_prob(action)
    value = policy.two_hot.decode(policy.critic(features).detach())
    advantage = (losses.returns - value) / policy.return_norm.scale()
    weight = policy.gamma ** torch.arange(H)
    expected = torch.autograd.grad(-(weight * score * advantage).mean(), head)
    for ours, ours_without, reinforce in zip(ratio_gradient, without, expected, strict=True):
        torch.testing.assert_close(ours, reinforce)
        torch.testing.assert_close(ours_without, reinforce)


def test_a_calibrated_critic_starts_at_the_mean_reward_for_ever() -> None:
    torch.manual_seed(0)
    policy = small(calibrate_critic=True, bins=255, gamma=0.9)
    batch = rollouts(policy)
    batch["next", "reward"] = torch.tensor([2.0, 4.0]).repeat(3)[None, :, None].expand(B, -1, 1).clone()
    batch["next", "reward"][:, -1] = 1000.0  # not used: what stands under the last row
    first = (2 + 4 + 2 + 4 + 2) / H / (1 - 0.9)
    losses = policy.losses(batch)
    assert losses.metrics["value"].item() == pytest.approx(first, rel=0.01)
    values = policy.two_hot.decode(policy.slow_critic(batch["features"]))
    torch.testing.assert_close(values, torch.full_like(values, first), rtol=0.01, atol=0)
    policy.update(batch)
    batch["next", "reward"].zero_()
    assert policy.losses(batch).metrics["value"] > 0.5 * first, "the first rollouts alone decide"
    batch["continue"] = torch.full((B, H + 1, 1), 0.5)
    fresh = small(calibrate_critic=True, bins=255, gamma=0.9)
    batch["next", "reward"].fill_(11.0)
    assert fresh.losses(batch).metrics["value"].item() == pytest.approx(11 / (1 - 0.9 * 0.5), rel=0.01)
    with pytest.raises(ValueError, match=r"needs gamma below 1, not 1.0: set agent\.gamma=0\.99"):
        small(calibrate_critic=True, gamma=1.0)


def test_centred_advantages_do_not_depend_on_a_constant_reward() -> None:
    """The actor's gradient is that of the deviations: the same with 5 more at every step, and not without centring."""

    def gradients(centred: bool) -> list[torch.Tensor]:
        found = []
        for constant in (0.0, 5.0):
            torch.manual_seed(0)
            policy = small(entropy=0.0, centre_advantages=centred, lambda_=0.0, gamma=0.0)
            batch = rollouts(policy)
            batch["next", "reward"] = 0.5 * batch["action"][..., :1] + constant  # the scale stays 1
            found.append(torch.autograd.grad(policy.losses(batch).actor, policy.actor.head[0].weight)[0])
        return found

    torch.testing.assert_close(*gradients(True), rtol=1e-3, atol=1e-7)
    without = gradients(False)
    assert (without[0] - without[1]).norm() > without[0].norm()


def test_a_step_too_far_is_not_rewarded() -> None:
    """Where the ratio is beyond the bound and the advantage wants more of it, the actor's gradient is nothing."""
    torch.manual_seed(0)
    policy = small(entropy=0.0)
    batch = rollouts(policy)
    batch["next", "reward"].fill_(1.0)  # all advantages are positive
    batch["action_log_prob"] -= 1.0  # ratio e
    losses = policy.losses(batch)
    gradients = torch.autograd.grad(losses.actor, list(policy.actor.head.parameters()))
    assert all((gradient == 0).all() for gradient in gradients)
    assert losses.metrics["clipped"] == 1.0


def test_the_encoder_learns_from_both_losses_and_each_head_from_its_own() -> None:
    torch.manual_seed(0)
    policy = small(observation="frames", feature_size=None)
    give_the_critic_an_opinion(policy)
    losses = policy.losses(rollouts(policy))
    reached = {
        (part, name): any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        for part, module in (("encoder", policy.actor.encoder), ("head", policy.actor.head), ("critic", policy.critic))
        for name, loss in (("actor", losses.actor), ("critic", losses.critic))
        for gradients in [torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)]
    }
    assert {key for key, value in reached.items() if value} == {
        ("encoder", "actor"), ("encoder", "critic"), ("head", "actor"), ("critic", "critic")
    }  # fmt: skip
    assert not any(parameter.requires_grad for parameter in policy.slow_critic.parameters())


def test_no_gradient_leaves_through_imagined_features() -> None:
    torch.manual_seed(0)
    policy = small()
    batch = rollouts(policy)
    batch["features"].requires_grad_()
    losses = policy.losses(batch)
    (losses.actor + losses.critic).backward()
    assert batch["features"].grad is None


def test_the_replay_value_loss_reaches_the_features() -> None:
    torch.manual_seed(0)
    policy = small()
    give_the_critic_an_opinion(policy)
    features = torch.randn(B, H, D, requires_grad=True)
    ended = torch.zeros(B, H, dtype=torch.bool)
    policy.replay_value_loss(features, torch.randn(B, H), ended, torch.randn(B, H)).backward()
    assert features.grad is not None and features.grad[:, :-1].any() and not features.grad[:, -1].any()


def test_the_critic_learns_values_of_real_steps_that_no_rollout_holds() -> None:
    """Imagined steps earn nothing and real ones, elsewhere, 1 each: 1 / (1 - 0.5) = 2."""
    torch.manual_seed(0)
    replayed = {"replay_value_weight": 0.3, "replay_rows": 8}
    policy = small(observation="state", feature_size=None, gamma=0.5, learning_rate=1e-2, **replayed)
    shape = [B, policy.replay_rows]
    after = TensorDict(reward=torch.ones(*shape, 1), terminated=torch.zeros(*shape, 1, dtype=torch.bool))
    batch = imagined_at(policy, torch.full((B, H + 1, 3), -1.0))
    real = TensorDict(state=torch.ones(*shape, 3), next=after, batch_size=shape)
    for _ in range(150):
        metrics = policy.update(batch.clone().set("real", real))
    values = policy.two_hot.decode(policy.critic(torch.tensor([[1.0] * 3, [-1.0] * 3])))
    # still on its way to 2
    assert 1.6 < values[0] < 2.2 and abs(values[1]) < 0.2, values
    assert "replay_value_loss" in metrics


def test_update_moves_all_parts_and_the_slow_critic_follows() -> None:
    torch.manual_seed(0)
    policy = small(slow_rate=0.25)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    metrics = policy.update(rollouts(policy))
    after = policy.state_dict()
    for name in ("critic.9.weight", "actor.head.9.weight", "actor.head.0.weight"):
        assert not torch.equal(before[name], after[name]), name
    moved = before["slow_critic.9.weight"].lerp(after["critic.9.weight"], 0.25)
    torch.testing.assert_close(after["slow_critic.9.weight"], moved)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_update_goes_on_exactly_from_its_state() -> None:
    torch.manual_seed(0)
    policy, other = small(), small()
    batch = rollouts(policy)
    policy.update(batch)
    other.load_state_dict(policy.state_dict())
    for name, optimizer in policy.optimizers.items():
        other.optimizers[name].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    policy.update(batch)
    other.update(batch)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_loss_that_is_not_finite_is_refused() -> None:
    policy = small()
    batch = rollouts(policy)
    batch["next", "reward"][0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="critic_loss"):
        policy.update(batch)


def test_what_is_read_must_be_there() -> None:
    assert small(observation="state", feature_size=None).actor.in_keys == ["state"]
    with pytest.raises(ValueError, match="learns from frames"):
        ActorCritic(Composite(state=Unbounded((3,))), ACTIONS)
