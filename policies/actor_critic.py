"""DreamerV3's actor-critic (Hafner et al. 2023, arXiv 2301.04104): learns from imagined rollouts by λ-returns.

B rollouts, H imagined steps, D features, A action. A rollout has H + 1 rows: row t holds the state at t, the action
taken there, and the resulting reward and termination. The last row's action and reward are not used.

The actor follows the policy gradient (REINFORCE) with advantages divided by the range of returns. If a rollout holds
the log-probability of its actions when they were sampled, the gradient uses the likelihood ratio instead, clipped as in
PPO (Schulman et al. 2017, arXiv 1707.06347), so that an expensive rollout can serve several updates. At the first of
them the ratio is 1 and the gradient is REINFORCE's.

While values lag behind the returns, every advantage is positive, and the actor reinforces every sampled action: with a
constant reward and six updates on each rollout its standard deviation falls from 0.88 to 0.23 in 500 updates. DreamerV3
avoids this with fresh rollouts for every update. If rollouts are expensive, two settings help: `calibrate_critic` (0.91
in the same test) and `centre_advantages` (0.81).

Gradients: the encoder learns from both losses. DrQ-v2's encoder learns from the critic alone, but that critic is
Q(s, a). V(s) carries no information about which action is better: on the toy from pixels, features learned from V alone
took about twice as many updates until the actor did well. Imagined features, returns, advantages and weights are
constants.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec
from torchrl.modules import SymExpTwoHot
from torchrl.modules.value_norm import PercentileValueNorm
from torchrl.trainers.algorithms.dreamer_v3 import DreamerV3Optimizer

from policies.base import Policy, exploring, gradient_step, require_finite
from policies.distributions import BoundedNormal, bounded_normal, logits_around
from policies.linear import Linear
from policies.networks import frames_encoder, orthogonal_init, soft_update
from policies.ranges import Bins, Count, LearningRate, Number, Pixels, PositiveShare, Rows, Share, Weight, Width
from policies.returns import continues, discounted_weight, lambda_return
from policies.specs import action_size, pixel_keys, state_size

LOG_PROB = "action_log_prob"


class Losses(NamedTuple):
    """Losses of a batch of rollouts.

    Attributes:
        actor: loss of the actor, 0-d.
        critic: loss of the critic, 0-d.
        returns: [B, H], λ-returns of all states but the last, without gradient.
        metrics: detached 0-d tensors.
    """

    actor: Tensor
    critic: Tensor
    returns: Tensor
    metrics: dict[str, Tensor]


class StochasticActor(TensorDictModuleBase):
    """Reads the observation; writes `action` [*B, A] and `action_log_prob` [*B, 1], its log-density."""

    def __init__(self, keys: list[str], encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.in_keys, self.out_keys = keys, ["action", LOG_PROB]
        self.encoder, self.head = encoder, head

    def encode(self, observed: TensorDictBase) -> Tensor:
        """Features [*B, D] of observations."""
        features: Tensor = self.encoder(*(observed[key] for key in self.in_keys))
        return features

    def distribution(self, features: Tensor) -> BoundedNormal:
        """Distribution of actions in [-1, 1], event shape [A], from features [*B, D]."""
        return bounded_normal(self.head(features))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self.distribution(self.encode(tensordict))
        action = actions.sample() if exploring() else actions.mean
        return tensordict.set("action", action).set(LOG_PROB, actions.log_prob(action).unsqueeze(-1))


class ActorCritic(Policy):
    """A stochastic actor and a two-hot critic on λ-returns.

    Args:
        observation_spec: has the key `observation`.
        action_spec: bounded to [-1, 1], [A].
        observation: the key that it reads. `frames` uint8 [3K, R, R] are encoded by a `ConvEncoder`, with `task` [N]
            if there are several tasks. `state` [D], or another vector [D] such as a world model's latent state, is read
            unchanged.
        feature_size: D of a vector that `observation_spec` does not hold; else None.
        encoder_channels: see `ConvEncoder`.
        encoder_strides: see `ConvEncoder`.
        kernel_size: see `ConvEncoder`.
        hidden_size: width of the hidden layers of the actor and of the critic.
        hidden_layers: number of hidden layers.
        bins: number of symexp-spaced values of the critic's categorical distribution.
        gamma: discount of one step, in (0, 1].
        lambda_: λ of the λ-returns, in [0, 1].
        entropy: weight of the entropy bonus.
        clip: ε, the largest distance of the likelihood ratio from 1.
        slow_weight: weight of the loss that pulls the critic towards its own moving average.
        slow_rate: Polyak coefficient tau of the critic's moving average, in (0, 1].
        centre_advantages: subtract the batch's mean advantage, weighted as the losses are. False is DreamerV3.
        replay_value_weight: weight of the critic's loss on real steps, beside imagined ones, if the replay holds the
            observation. 0: no such loss; DreamerV3: 0.3.
        replay_rows: T, rows of each segment of real steps.
        calibrate_critic: initialise the critic to the value of a constant reward, the mean of the first rollouts; it
            needs gamma below 1. False (DreamerV3): it starts at 0.
        learning_rate: learning rate of LaProp with adaptive gradient clipping.
        warmup: updates over which the learning rate rises linearly.

    Raises:
        ValueError: the critic cannot be calibrated, or a setting does not fit the specs.
    """

    learns_from = "rollouts"

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        observation: str = "frames",
        feature_size: Width | None = None,
        encoder_channels: Sequence[Width] = (16, 32, 64),
        encoder_strides: Sequence[Pixels] = (2, 2, 2),
        kernel_size: Pixels = 3,
        hidden_size: Width = 256,
        hidden_layers: Number = 3,
        bins: Bins = 255,
        gamma: PositiveShare = 1 - 1 / 333,
        lambda_: Share = 0.95,
        entropy: Weight = 3e-4,
        clip: PositiveShare = 0.2,
        slow_weight: Weight = 1.0,
        slow_rate: PositiveShare = 0.02,
        replay_value_weight: Weight = 0.0,
        replay_rows: Rows = 16,
        centre_advantages: bool = False,
        calibrate_critic: bool = False,
        learning_rate: LearningRate = 4e-5,
        warmup: Count = 1000,
    ) -> None:
        super().__init__()
        self.gamma, self.lambda_, self.entropy = gamma, lambda_, entropy
        self.clip, self.slow_weight, self.slow_rate = clip, slow_weight, slow_rate
        self.replay_value_weight, self.replay_rows = replay_value_weight, replay_rows if replay_value_weight else 0
        self.centre_advantages, self.calibrate_critic = centre_advantages, calibrate_critic
        if calibrate_critic and not gamma < 1:
            raise ValueError(f"actor_critic: calibrate_critic needs gamma below 1, not {gamma}: set agent.gamma=0.99")
        encoder: nn.Module = nn.Identity()
        keys = [observation]
        if observation == "frames":
            keys = pixel_keys(observation_spec)
            encoder = frames_encoder(observation_spec, "actor_critic", encoder_channels, encoder_strides, kernel_size)
            feature_size = encoder.out_features
            self.segment_history = observation_spec["frames"].shape[-3] // 3 - 1
        elif feature_size is None:
            feature_size = state_size(observation_spec, "actor_critic")
        hidden = (feature_size, *[hidden_size] * hidden_layers)
        head = normed_mlp((*hidden, 2 * action_size(action_spec, "actor_critic")), last_scale=0.01)
        self.actor: StochasticActor = StochasticActor(keys, encoder, head)
        self.critic = normed_mlp((*hidden, bins), last_scale=0.0)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.two_hot = SymExpTwoHot(bins)
        self.return_norm = PercentileValueNorm()  # 5th to 95th percentile, rate 0.01, at least 1: as published
        # Each optimiser counts its own steps: imitation trains the actor alone, and the critic warms up later.
        self.optimizers = {
            name: DreamerV3Optimizer(network.parameters(), lr=learning_rate, warmup_steps=warmup)
            for name, network in (("actor", self.actor), ("critic", self.critic))
        }

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one gradient step on imagined rollouts, see `losses`, and of the critic on segments `real` [B, T]."""
        losses = self.losses(batch)
        named = {"actor_loss": losses.actor, "critic_loss": losses.critic}
        loss = losses.actor + losses.critic
        if self.replay_rows:
            replayed = self._value_loss(batch["real"])
            named["replay_value_loss"] = replayed
            loss = loss + self.replay_value_weight * replayed
        require_finite(named)
        gradient_step(loss, self.optimizers.values())
        self.update_slow_critic()
        return losses.metrics | {name: value.detach() for name, value in named.items()}

    def clone(self, batch: TensorDictBase, weight: float = 1.0) -> dict[str, Tensor]:
        """Take one step of actor and encoder on the demonstrations' log-likelihood; the critic does not learn."""
        actions = self.actor.distribution(self.actor.encode(batch))
        loss = -actions.log_prob(batch["action"]).mean()
        require_finite({"cloning_loss": loss})
        gradient_step(weight * loss, [self.optimizers["actor"]])
        return {"cloning_loss": loss.detach()}

    def losses(self, rollouts: TensorDictBase) -> Losses:
        """Compute the losses; also update the return normaliser and, before the first update, calibrate the critic.

        Args:
            rollouts: [B, H + 1], with the observation, `action` [B, H + 1, A], ("next", "reward") [B, H + 1, 1], and
                either `continue` [B, H + 1, 1], the probability that a row's state is not terminal, or
                ("next", "terminated"). With the optional `action_log_prob` [B, H + 1, 1], of the actor that imagined
                them, the likelihood ratio is used.
        """
        features = self.actor.encode(rollouts.detach())  # [B, H + 1, D]
        continuation = continues(rollouts)  # [B, H + 1]
        weight = discounted_weight(continuation, self.gamma)[:, :-1]
        reward = rollouts["next", "reward"].squeeze(-1)[:, :-1]
        if self.calibrate_critic and self.optimizers["critic"].param_groups[0]["step"] == 0:
            self._calibrate(reward, continuation[:, 1:])
        logits = self.critic(features)
        value = self.two_hot.decode(logits.detach())
        returns = lambda_return(reward, value[:, 1:], continuation[:, 1:], gamma=self.gamma, lambda_=self.lambda_)
        self.return_norm.update(returns.unsqueeze(-1))
        advantage = returns - value[:, :-1]
        if self.centre_advantages:
            advantage = advantage - (weight * advantage).sum() / weight.sum()
        advantage = advantage / self.return_norm.scale()
        actions = self.actor.distribution(features[:, :-1])
        log_prob, entropy = actions.log_prob(rollouts["action"][:, :-1].detach()), actions.entropy()
        old_log_prob = rollouts[LOG_PROB].squeeze(-1)[:, :-1] if LOG_PROB in rollouts.keys() else log_prob.detach()
        ratio = (log_prob - old_log_prob).exp()
        gain = clipped_gain(ratio, advantage, self.clip) + self.entropy * entropy
        critic = (weight * self._critic_loss(logits[:, :-1], features[:, :-1], returns)).mean()
        metrics = {
            "critic_loss": critic.detach(), "value": value.mean(), "return": returns.mean(),
            "return_scale": self.return_norm.scale().squeeze(), "entropy": entropy.detach().mean(),
            "std": actions.scale.detach().mean(), "clipped": ((ratio.detach() - 1).abs() > self.clip).float().mean(),
        }  # fmt: skip
        actor = -(weight * gain).mean()
        return Losses(actor, critic, returns, metrics | {"actor_loss": actor.detach()})

    def replay_value_loss(self, features: Tensor, reward: Tensor, terminated: Tensor, start: Tensor) -> Tensor:
        """The critic's loss on sequences of real steps, 0-d; its gradient flows into `features` too.

        Args:
            features: [B, T, D] of consecutive real states; the last step's reward and flag are not used.
            reward: [B, T], reward of the action taken in each state.
            terminated: bool [B, T], whether that action ended the episode.
            start: [B, T], the value of each state: the first λ-return of the rollout imagined from it.
        """
        continuation = (~terminated[:, :-1]).to(reward.dtype)
        returns = lambda_return(reward[:, :-1], start[:, 1:], continuation, gamma=self.gamma, lambda_=self.lambda_)
        return self._critic_loss(self.critic(features[:, :-1]), features[:, :-1], returns).mean()

    def _value_loss(self, real: TensorDictBase) -> Tensor:
        """`replay_value_loss` on segments [B, T], with values of the critic's moving average."""
        features, after = self.actor.encode(real), real["next"]
        with torch.no_grad():
            value = self.two_hot.decode(self.slow_critic(features))
        return self.replay_value_loss(
            features, after["reward"].squeeze(-1), after["terminated"].squeeze(-1), start=value
        )

    @torch.no_grad()
    def _calibrate(self, reward: Tensor, continuation: Tensor) -> None:
        """Initialise the critic to the value of a constant reward, the mean of `reward` [B, H]."""
        value = reward.mean() / (1 - self.gamma * continuation.mean())
        last = self.critic[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(logits_around(value, self.two_hot))
        self.slow_critic.load_state_dict(self.critic.state_dict())

    def _critic_loss(self, logits: Tensor, features: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy [B, H] to the returns, plus the cross-entropy to values of the critic's moving average."""
        with torch.no_grad():
            slow = self.two_hot.decode(self.slow_critic(features))
        return self.two_hot.loss(logits, returns) + self.slow_weight * self.two_hot.loss(logits, slow)

    def update_slow_critic(self) -> None:
        """Update the critic's moving average; call it after each optimiser step."""
        soft_update(self.slow_critic, self.critic, self.slow_rate)


def clipped_gain(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped objective: min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), with ρ `ratio`, A `advantage` and ε `clip`."""
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def normed_mlp(sizes: Sequence[int], *, last_scale: float) -> nn.Sequential:
    """Linear, RMSNorm and SiLU for each hidden layer, then a linear layer with weights scaled by `last_scale`."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes[:-1]):
        layers += [Linear(width_in, width_out), nn.RMSNorm(width_out), nn.SiLU()]
    last = Linear(sizes[-2], sizes[-1])
    network = nn.Sequential(*layers, last)
    orthogonal_init(network)
    with torch.no_grad():
        last.weight.mul_(last_scale)
    return network
