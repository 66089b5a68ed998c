"""TorchRL's DreamerV3 losses say what ours say of the same rollouts."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.modules.distributions import TruncatedNormal
from torchrl.objectives.dreamer_v3 import DreamerV3ActorLoss, DreamerV3ValueLoss
from torchrl.objectives.utils import ValueEstimators

from policies.actor_critic import ActorCritic
from tests.policies.test_actor_critic import B, D, H, give_the_critic_an_opinion, rollouts, small


class Recorded(nn.Module):
    """Stands where TorchRL wants a world model, with a rollout that is known already."""

    def __init__(self, rollout: TensorDict) -> None:
        super().__init__()
        self.recorded = rollout

    def reset(self, tensordict: Any) -> Any:
        return tensordict

    def rollout(self, **_: Any) -> TensorDict:
        return self.recorded.clone()


@pytest.fixture
def policy() -> ActorCritic:
    torch.manual_seed(0)
    policy = small()
    give_the_critic_an_opinion(policy)
    nn.init.normal_(policy.slow_critic[-1].weight, std=0.5)  # and had another one before
    return policy


@pytest.fixture
def batch(policy: ActorCritic) -> TensorDict:
    batch = rollouts(policy).exclude("frames")
    batch["continue"] = batch["features"][..., :1].sigmoid()
    batch["next", "reward"] *= 3
    return batch


def value_model(policy: ActorCritic) -> TensorDictModule:
    def value(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = policy.critic(features)
        return policy.two_hot(logits), logits

    module = TensorDictModule(value, in_keys=["features"], out_keys=["state_value", "state_value_logits"])
    module.critic = policy.critic
    return module


def actor_loss(policy: ActorCritic, batch: TensorDict) -> DreamerV3ActorLoss:
    def location_and_scale(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        actions = policy.actor.distribution(features)
        return actions.loc, actions.scale

    parameters = TensorDictModule(location_and_scale, in_keys=["features"], out_keys=["loc", "scale"])
    distribution = ProbabilisticTensorDictModule(
        in_keys=["loc", "scale"], out_keys=["action"], distribution_class=TruncatedNormal
    )
    recorded = batch[:, :-1].select("features", "action")
    after = {"features": batch["features"][:, 1:], "reward": batch["next", "reward"][:, :-1]}
    flags = dict.fromkeys(("done", "terminated"), torch.zeros(B, H, 1, dtype=torch.bool))
    recorded["next"] = TensorDict({**after, **flags}, batch_size=[B, H])
    continues = TensorDictModule(lambda x: x[..., :1].sigmoid(), in_keys=["features"], out_keys=["continuation"])
    loss = DreamerV3ActorLoss(
        ProbabilisticTensorDictSequential(parameters, distribution),
        value_model(policy),
        Recorded(recorded),
        continuation_model=continues,
        imagination_horizon=H,
        use_reinforce=True,
        entropy_bonus=policy.entropy,
    )
    loss.set_keys(state="features", belief="features")
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=policy.gamma, lmbda=policy.lambda_)
    return loss


def test_actor_and_returns(policy: ActorCritic, batch: TensorDict) -> None:
    oracle, imagined = actor_loss(policy, batch)(batch[:, 0])
    ours = policy.losses(batch)
    torch.testing.assert_close(imagined["lambda_target"][..., 0], ours.returns)
    torch.testing.assert_close(oracle["return_scale"].squeeze(), ours.metrics["return_scale"])
    head = list(policy.actor.head.parameters())
    # the losses differ by a constant: ours stands at the ratio 1, theirs at the score
    for mine, theirs in zip(
        torch.autograd.grad(ours.actor, head), torch.autograd.grad(oracle["loss_actor"], head), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def value_loss(policy: ActorCritic) -> DreamerV3ValueLoss:
    bins = policy.two_hot.num_bins
    loss = DreamerV3ValueLoss(
        value_model(policy), value_loss="two_hot", num_value_bins=bins, gamma=policy.gamma,
        slow_critic_regularization=1.0,
    )  # fmt: skip
    slow = dict(policy.slow_critic.named_parameters())
    for name, parameter in loss.target_value_model_params.items(True, True):
        key = ".".join(name).removeprefix("critic.").removeprefix("module.critic.")
        parameter.data.copy_(slow[key])
    return loss


def test_critic(policy: ActorCritic, batch: TensorDict) -> None:
    ours = policy.losses(batch)
    weight = policy.gamma ** torch.arange(H) * batch["continue"][:, :-1, 0].cumprod(1)
    imagined = TensorDict(
        features=batch["features"][:, :-1], lambda_target=ours.returns[..., None], discount_weight=weight[..., None],
        batch_size=[B, H],
    )  # fmt: skip
    oracle, _ = value_loss(policy)(imagined)
    torch.testing.assert_close(oracle["loss_value"], ours.critic)


def test_replayed_values(policy: ActorCritic) -> None:
    features, reward, start = torch.randn(B, H, D), torch.randn(B, H), torch.randn(B, H)
    terminated = torch.zeros(B, H, dtype=torch.bool)
    terminated[0, -2] = True
    ours = policy.replay_value_loss(features, reward, terminated, start)
    # theirs has the reward and the flags of arriving at a state beside that state
    arrived = {"reward": reward.roll(1, 1)[..., None], "terminated": terminated.roll(1, 1)[..., None]}
    replayed = TensorDict(
        features=features, bootstrap=start, batch_size=[B, H],
        next=TensorDict({**arrived, "done": arrived["terminated"]}, batch_size=[B, H]),
    )  # fmt: skip
    oracle = value_loss(policy).replay_value_loss(replayed, horizon=1 / (1 - policy.gamma), lmbda=policy.lambda_)
    torch.testing.assert_close(oracle["loss_replay_value"], ours)
