"""What mbpo does in a stretch of agent steps, as a plain loop of the same networks: what ours is held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.agent import Agent
from mbrl.bench._plain_sac import draw, plain
from policies.sac import SAC
from worldmodel.ensemble import ProbabilisticEnsemble

Columns = tuple[Tensor, ...]  # state, action, reward and next state of transitions, [N, *] each


def stretch(agent: Agent, steps: TensorDict, *, fits: int, imaginations: int, updates: int) -> Callable[[], object]:
    """Gradient steps of the ensemble, rollouts of it, and policy updates of mixed batches, of bare tensors: no held-out
    data, no episodes, no metrics, no checks. It trains the agent's networks.

    Args:
        agent: mbpo; its horizon is the last one. steps: all real ones, as ``Replay.steps`` gives them.
    """
    policy, model, imagination = agent.policy, agent.world_model, agent.imagination
    assert isinstance(policy, SAC) and isinstance(model, ProbabilisticEnsemble) and imagination is not None
    members, elites = model.members, model.elites
    adam = torch.optim.AdamW(members.parameters(), lr=1e-3)
    real = (steps["state"], steps["action"], steps["next", "reward"], steps["next", "state"])
    inputs, targets = torch.cat(real[:2], -1), torch.cat([real[3] - real[0], real[2]], -1)
    everything, rollouts = model.source < 0, imagination.env.batch_size[0]
    batch = TensorDict(
        state=real[0][:1], action=real[1][:1], gamma=torch.tensor([[0.99]]),
        next={"state": real[3][:1], "reward": real[2][:1], "terminated": torch.zeros(1, 1, dtype=torch.bool)},
        batch_size=[1],
    ).expand(agent.batch_size).clone()  # fmt: skip
    taken = (batch["state"], batch["action"], batch["next", "reward"], batch["next", "state"])
    learn = plain(policy, batch)

    def fit() -> None:
        rows = torch.randint(len(inputs), (members.count, model.batch_size))
        loss = members.loss(members(inputs[rows]), targets[rows], torch.cat([everything, everything.new_ones(1)]))
        adam.zero_grad()
        loss.backward()
        adam.step()

    @torch.no_grad()
    def imagine() -> Columns:
        state, seen = real[0][torch.randint(len(inputs), (rollouts,))], []
        for _ in range(imagination.schedule.last):
            action, _log_prob = draw(policy.actor.network, state)
            rows = torch.cat([state, action], -1).reshape(len(elites), -1, inputs.shape[1])
            mean = members((rows - model.of_inputs.mean) @ model.of_inputs.white, elites).mean.flatten(0, 1)
            after = state + mean[:, :-1] @ model.of_states.coloured
            seen.append((state, action, mean[:, -1:], after))
            state = after
        return tuple(torch.cat(column) for column in zip(*seen, strict=True))

    def mix(imagined: Columns) -> None:
        own = torch.randint(len(inputs), (agent.real,))
        others = torch.randint(len(imagined[0]), (agent.batch_size - agent.real,))
        for into, first, second in zip(taken, real, imagined, strict=True):
            into[: agent.real] = first[own]
            into[agent.real :] = second[others]

    def run() -> None:
        for _ in range(fits):
            fit()
        kept: list[Columns] = []
        for number in range(updates):
            if number % (updates // imaginations) == 0:
                kept.append(imagine())
                imagined = tuple(torch.cat(column) for column in zip(*kept, strict=True))
            mix(imagined)
            learn()

    return run
