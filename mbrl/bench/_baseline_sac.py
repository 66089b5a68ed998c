"""SAC's update as a plain loop and with TorchRL's losses, on the same networks: the baselines of `policies.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from policies.sac import LOG_STD_MAX, LOG_STD_MIN, SAC

LEARNING_RATE = 3e-4
Update = Callable[[], object]


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)


def sample_action(network: nn.Module, state: Tensor) -> tuple[Tensor, Tensor]:
    """Sample an action [B, A]; returns it and its log-density [B, 1]."""
    mean, raw = network(state).chunk(2, -1)
    log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (1 + torch.tanh(raw))
    noise = torch.randn_like(mean)
    pre_tanh = mean + log_std.exp() * noise
    density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    slope = 2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))
    return torch.tanh(pre_tanh), (density - slope).sum(-1, keepdim=True)


def baseline_update(policy: SAC, batch: TensorDict) -> Update:
    """A function that updates the networks of `policy` on plain tensors, with two critics and no metrics or checks."""
    actor, log_temperature = policy.actor.network, policy.log_temperature
    first, second = policy.critic.networks
    targets, scale = policy.target_critic.networks, policy.critic.scale
    critic_parameters: list[nn.Parameter] = [*first.parameters(), *second.parameters()]
    critic_adam, actor_adam, temperature_adam = (
        _adam(parameters) for parameters in (critic_parameters, list(actor.parameters()), [log_temperature])
    )
    state, action, gamma = batch["state"], batch["action"], batch["gamma"]
    after, reward, terminated = (batch["next", key] for key in ("state", "reward", "terminated"))

    def update() -> None:
        temperature = log_temperature.detach().exp()
        with torch.no_grad():
            next_action, log_prob = sample_action(actor, after)
            inputs = torch.cat((after, next_action), -1)
            value = scale * torch.minimum(targets[0](inputs), targets[1](inputs)) - temperature * log_prob
            target_value = reward + gamma * ~terminated * value
        inputs = torch.cat((state, action), -1)
        critic_loss = F.mse_loss(scale * first(inputs), target_value) + F.mse_loss(scale * second(inputs), target_value)
        critic_adam.zero_grad()
        critic_loss.backward()
        critic_adam.step()
        new_action, log_prob = sample_action(actor, state)
        inputs = torch.cat((state, new_action), -1)
        actor_loss = (temperature * log_prob - scale * torch.minimum(first(inputs), second(inputs))).mean()
        actor_adam.zero_grad()
        actor_loss.backward(inputs=list(actor.parameters()))
        actor_adam.step()
        temperature_adam.zero_grad()
        (-log_temperature * (log_prob.detach().mean() + policy.target_entropy)).backward()
        temperature_adam.step()
        with torch.no_grad():
            for target, network in zip(targets, (first, second), strict=True):
                torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), policy.target_rate)

    return update


class _Gaussian(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.network(state).chunk(2, -1)
        return mean, (LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (1 + torch.tanh(raw))).exp()


class _Value(nn.Module):
    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.scale * self.network(torch.cat((state, action), -1))
        return value


def torchrl_loss(policy: SAC, action_spec: Bounded, gamma: float) -> SACLoss:
    """TorchRL's SAC losses on the networks of the policy."""
    module = TensorDictModule(_Gaussian(policy.actor.network), in_keys=["state"], out_keys=["loc", "scale"])
    actor = ProbabilisticActor(
        module, in_keys=["loc", "scale"], distribution_class=TanhNormal, spec=action_spec, return_log_prob=True
    )
    values = [_Value(network, policy.critic.scale) for network in policy.critic.networks]
    critics = [ValueOperator(value, in_keys=["state", "action"]) for value in values]
    loss = SACLoss(
        actor,
        critics,
        loss_function="l2",
        alpha_init=policy.log_temperature.exp().item(),
        target_entropy=policy.target_entropy,
    )
    loss.make_value_estimator(gamma=gamma)
    return loss


def torchrl_update(policy: SAC, batch: TensorDict, action_spec: Bounded) -> Update:
    """A function that updates the policy as TorchRL's SAC example: one pass for all losses, one step per optimiser."""
    loss = torchrl_loss(policy, action_spec, gamma=float(batch["gamma"][0]))
    parameters = (loss.actor_network_params, loss.qvalue_network_params)
    adams = [_adam(list(part.flatten_keys().values())) for part in parameters] + [_adam([loss.log_alpha])]
    targets = SoftUpdate(loss, tau=policy.target_rate)

    def update() -> None:
        losses = loss(batch)
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
        for adam in adams:
            adam.step()
            adam.zero_grad()
        targets.step()

    return update
