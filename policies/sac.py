"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) from `state`.

B batch, S numbers in a state, A action, N critics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite, TensorSpec

from policies.base import exploring, gradient_step, require_finite
from policies.bc import imitation
from policies.metrics import value_metrics
from policies.networks import Critics, RunningNorm, constant_weights, perceptron, soft_update
from policies.ranges import Entropy, LearningRate, Number, PositiveShare, Scale, WeightDecay
from policies.specs import action_size, state_size
from policies.value_base import ValuePolicy, value

Network = Callable[[int, int], nn.Module]  # (input size, output size) -> a module [*B, in] -> [*B, out]

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


layer_norm_perceptron = partial(perceptron, layer_norm=True)


class StateActor(TensorDictModuleBase):
    """Reads `state` [*B, S]; writes `action` [*B, A], tanh of a Gaussian sample, or of the mean without exploration.

    It has no distribution object, because tensor code is faster and runs at every env step.
    """

    def __init__(self, network: nn.Module, normalizer: RunningNorm | None) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["state"], ["action"]
        self.network, self.normalizer = network, normalizer

    def encode(self, observed: TensorDictBase) -> Tensor:
        """Inputs of the networks [*B, S]: the state, normalised if there is a normalizer."""
        state: Tensor = observed["state"]
        return state if self.normalizer is None else self.normalizer(state)

    def gaussian(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation before tanh, [*B, A] each."""
        mean, raw = self.network(features).chunk(2, dim=-1)
        # A clamp would give no gradient outside its bounds, so the value is squashed by tanh.
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1.0)

    def sample(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised sample [*B, A] in (-1, 1), and its log-density [*B, 1]."""
        mean, log_std = self.gaussian(features)
        noise = torch.randn_like(mean)
        return squash(mean, log_std, noise)

    def act(self, features: Tensor) -> Tensor:
        """Action [*B, A] from features [*B, S], a sample while exploring."""
        mean, log_std = self.gaussian(features)
        if exploring():
            mean = mean + log_std.exp() * torch.randn_like(mean)
        return torch.tanh(mean)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", self.act(self.encode(tensordict)))


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log-density under tanh(N(mean, std²)), summed over actions: [*B, 1]."""
    pre_tanh = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - LOG_SQRT_2PI
    # This form of log(1 - tanh²(z)) is exact for large z too.
    log_slope = 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))
    return torch.tanh(pre_tanh), (gaussian - log_slope).sum(dim=-1, keepdim=True)


class SAC(ValuePolicy):
    """A tanh-Gaussian actor, the minimum of N critics, and a learned temperature that holds the target entropy.

    Args:
        observation_spec: has `state` float32 [S].
        action_spec: bounded to [-1, 1], [A].
        actor_network: called with the sizes of input and output; `perceptron` or one of `policies.residual`.
        critic_network: as `actor_network`.
        normalizer: called with S; normalises states for all networks by statistics of the real states of batches. None:
            states are not normalised.
        critics: N, 1 or more.
        value_scale: factor of the critics' outputs, above 0, see `Critics`; the units of rewards, losses and the
            temperature do not change.
        learning_rate: learning rate of AdamW, for critics, actor and temperature.
        weight_decay: weight decay of AdamW, for critics and actor; 0 is Adam.
        target_rate: Polyak coefficient tau of the target critics, in (0, 1].
        temperature: initial temperature, above 0.
        target_entropy: in nats. None is -A / 2, as in BRO and SimBa: the entropy of each action then equals that of a
            uniform interval of width e^-0.5 = 0.6; -A gives 0.37.
        cuda_graphs: see `Policy`.
    """

    target_critic: Critics
    acts_on_cpu = True

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        actor_network: Network = perceptron,
        critic_network: Network = layer_norm_perceptron,
        normalizer: Callable[[int], RunningNorm] | None = None,
        critics: Number = 2,
        value_scale: Scale = 1.0,
        learning_rate: LearningRate = 3e-4,
        weight_decay: WeightDecay = 0.0,
        target_rate: PositiveShare = 0.005,
        temperature: Scale = 1.0,
        target_entropy: Entropy | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.cuda_graphs = cuda_graphs
        if critics < 1 or temperature <= 0 or value_scale <= 0:
            raise ValueError(
                f"sac: critics ({critics}) must be 1 or more, "
                f"temperature ({temperature}) and value_scale ({value_scale}) above 0"
            )
        states, actions = state_size(observation_spec, "sac"), action_size(action_spec, "sac")
        normalize = None if normalizer is None else normalizer(states)
        self.actor: StateActor = StateActor(actor_network(states, 2 * actions), normalize)
        self.critic = Critics(critic_network, states + actions, critics, scale=value_scale)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.target_rate = target_rate
        self.target_entropy = -actions / 2 if target_entropy is None else target_entropy
        adam = partial(torch.optim.AdamW, lr=learning_rate, fused=True)
        self.optimizers = {
            "critic": adam(self.critic.parameters(), weight_decay=weight_decay),
            "actor": adam(self.actor.parameters(), weight_decay=weight_decay),
            "temperature": adam([self.log_temperature], weight_decay=0.0),
        }

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        features, metrics = self._learn_values(batch)
        metrics |= self._update_actor(features, batch)
        soft_update(self.target_critic, self.critic, self.target_rate)
        require_finite({name: metrics[name] for name in ("critic_loss", "actor_loss")})
        return metrics

    def clone(self, batch: TensorDictBase, weight: float = 1.0) -> dict[str, Tensor]:
        """Take one step of imitation on sampled actions, which narrows the Gaussian; critics learn as in `update`."""
        features, metrics = self._learn_values(batch)
        loss = F.mse_loss(self.actor.sample(features)[0], batch["action"])
        gradient_step(weight * loss, [self.optimizers["actor"]])
        soft_update(self.target_critic, self.critic, self.target_rate)
        metrics["cloning_loss"] = loss.detach()
        require_finite({name: metrics[name] for name in ("critic_loss", "cloning_loss")})
        return metrics

    def calibrate(self, batch: TensorDictBase) -> dict[str, Tensor]:
        features = self.actor.encode(batch)
        metrics = self._update_critic(features, batch, self.target(batch))
        soft_update(self.target_critic, self.critic, self.target_rate)
        require_finite({"critic_loss": metrics["critic_loss"]})
        return metrics

    def _learn_values(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step of the critics; returns the features of the batch's states, and metrics."""
        if self.actor.normalizer is not None:
            self.actor.normalizer.observe(batch["state"], left_out=batch.get("imagined", None))
        features = self.actor.encode(batch)
        return features, self._update_critic(features, batch, self.target(batch))

    @torch.no_grad()
    def target(self, batch: TensorDictBase) -> Tensor:
        """Target of the critics, [B, 1]: reward plus the discounted soft value of the lowest target critic."""
        following = batch["next"]
        features = self.actor.encode(following)
        action, log_prob = self.actor.sample(features)
        worth = value(self.target_critic, features, action) - self.log_temperature.exp() * log_prob
        return following["reward"] + batch["gamma"] * ~following["terminated"] * worth

    def critic_loss(self, values: Tensor, target: Tensor) -> Tensor:
        """Squared errors of [N, B, 1] against [B, 1]: summed over the critics, averaged over the batch."""
        return len(values) * F.mse_loss(values, target.expand_as(values))

    def actor_losses(self, features: Tensor, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Loss of the actor and entropy of its distribution, both 0-d."""
        action, log_prob = self.actor.sample(features)
        worth = value(self.critic, features, action)
        loss = (self.log_temperature.detach().exp() * log_prob - worth).mean()
        if "cloning" in batch.keys():
            loss = loss + imitation(action, batch, worth)
        return loss, -log_prob.detach().mean()

    def temperature_loss(self, entropy: Tensor) -> Tensor:
        """Loss of the temperature: below the target entropy its gradient is negative, so the temperature rises."""
        return self.log_temperature * (entropy - self.target_entropy)

    def _update_critic(self, features: Tensor, batch: TensorDictBase, target: Tensor) -> dict[str, Tensor]:
        values = self.critic(features, batch["action"])  # [N, B, 1]
        loss = self.critic_loss(values, target)
        gradient_step(loss, [self.optimizers["critic"]])
        return {"critic_loss": loss.detach()} | value_metrics(values, target, batch)

    def _update_actor(self, features: Tensor, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one step of the actor, and one of the temperature towards the target entropy."""
        with constant_weights(self.critic):
            loss, entropy = self.actor_losses(features, batch)
        gradient_step(
            loss + self.temperature_loss(entropy), [self.optimizers[name] for name in ("actor", "temperature")]
        )
        temperature = self.log_temperature.detach().exp()
        return {"actor_loss": loss.detach(), "entropy": entropy, "temperature": temperature}
