"""MBPO's updates over a number of agent steps as a plain loop on the same networks: the baseline of `mbpo.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from mbrl.agents.agent import Agent
from mbrl.bench._baseline_sac import baseline_update, sample_action
from policies.sac import SAC
from worldmodel.ensemble.members import HIGHEST, LOWEST, Gaussian, Members
from worldmodel.ensemble.model import ProbabilisticEnsemble

Columns = tuple[Tensor, ...]  # state, action, reward and next state of transitions, [N, *] each


def baseline_updates(
    agent: Agent, steps: TensorDict, *, fits: int, imaginations: int, updates: int
) -> Callable[[], object]:
    """A function that takes gradient steps of the ensemble, imagines rollouts and updates the policy, on plain tensors.

    It trains the networks of the agent. It has no held-out data, episodes, n-step sums, metrics or checks.

    Args:
        agent: an agent of configs/agent/mbpo.yaml. Its horizon is the final one.
        steps: all real steps, from `Replay.steps`.
        fits: gradient steps of the ensemble.
        imaginations: number of times that rollouts are imagined, evenly spread over the updates.
        updates: policy updates.
    """
    policy, model, imagination = agent.policy, agent.world_model, agent.imagination
    assert isinstance(policy, SAC) and isinstance(model, ProbabilisticEnsemble) and imagination is not None
    real = (steps["state"], steps["action"], steps["next", "reward"], steps["next", "state"])
    batch = _empty_batch(real, agent.schedule.batch_size)
    columns = (batch["state"], batch["action"], batch["next", "reward"], batch["next", "state"])
    fit_model, update_policy = model_update(model, real), baseline_update(policy, batch)
    real_rows = agent.schedule.real
    rollouts, horizon = imagination.env.batch_size[0], imagination.schedule.last

    def mix(imagined: Columns) -> None:
        real_index = torch.randint(len(real[0]), (real_rows,))
        imagined_index = torch.randint(len(imagined[0]), (agent.schedule.batch_size - real_rows,))
        for target, first, second in zip(columns, real, imagined, strict=True):
            target[:real_rows] = first[real_index]
            target[real_rows:] = second[imagined_index]

    def run() -> None:
        for _ in range(fits):
            fit_model()
        rollouts_so_far: list[Columns] = []
        for number in range(updates):
            if number % (updates // imaginations) == 0:
                starts = real[0][torch.randint(len(real[0]), (rollouts,))]
                rollouts_so_far.append(imagine(policy, model, starts, horizon))
                imagined = tuple(torch.cat(column) for column in zip(*rollouts_so_far, strict=True))
            mix(imagined)
            update_policy()

    return run


def _empty_batch(real: Columns, size: int) -> TensorDict:
    state, action, reward, after = (column[:1].expand(size, -1).clone() for column in real)
    following = {"state": after, "reward": reward, "terminated": torch.zeros(size, 1, dtype=torch.bool)}
    gamma = torch.full((size, 1), 0.99)
    return TensorDict(state=state, action=action, gamma=gamma, next=following, batch_size=[size])


def model_update(model: ProbabilisticEnsemble, real: Columns) -> Callable[[], object]:
    """A function that takes one gradient step of all members, on whitened data."""
    members, adam = model.members, torch.optim.AdamW(model.members.parameters(), lr=1e-3, fused=True)
    state, action, reward, after = real
    inputs = model.of_inputs(torch.cat([state, action], -1))
    targets = torch.cat([model.of_states(after - state), model.of_rewards(reward)], -1)
    all_targets = torch.arange(targets.shape[1])

    def step() -> None:
        rows = torch.randint(len(inputs), (members.count, model.batch_size))
        loss = members.loss(_forward(members, inputs[rows]), targets[rows], all_targets)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def _forward(members: Members, inputs: Tensor, chosen: Tensor | None = None) -> Gaussian:
    """As `Members.forward`, each layer of all members one batched product of PyTorch."""
    hidden = inputs
    for number, (weight, bias) in enumerate(zip(members.weights, members.biases, strict=True)):
        if chosen is not None:
            weight, bias = weight[chosen], bias[chosen]
        hidden = torch.baddbmm(bias, F.silu(hidden) if number else hidden, weight)
    mean, raw = hidden.chunk(2, -1)
    return Gaussian(mean, LOWEST + F.softplus(HIGHEST - F.softplus(HIGHEST - raw) - LOWEST))


@torch.no_grad()
def imagine(policy: SAC, model: ProbabilisticEnsemble, state: Tensor, horizon: int) -> Columns:
    """Rollouts. Every elite predicts every row: one elite gives the next state, and all give the reward bonus."""
    steps_so_far, number = [], torch.arange(len(state))
    for _ in range(horizon):
        action, _log_prob = sample_action(policy.actor.network, state)
        inputs = model.of_inputs(torch.cat([state, action], -1))
        mean = _forward(model.members, inputs.expand(len(model.elites), -1, -1), model.elites).mean
        sampled = mean[number % len(model.elites), number]
        after = state + model.of_states.inverse(sampled[:, :-1])
        reward = model.of_rewards.inverse(sampled[:, -1:]) + model.of_rewards.coloured * mean[..., -1:].std(0)
        steps_so_far.append((state, action, reward, after))
        state = after
    return tuple(torch.cat(column) for column in zip(*steps_so_far, strict=True))
