"""How well a world model ranks plans from recorded states, against the simulator.

S starts, N plans from each, K samples, H horizon, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from mbrl.collecting.acting import Acting
from mbrl.collecting.imagining import imagine
from mbrl.device import fork_rng
from mbrl.envs.simulator_model import SimulatorModel, simulator_for
from mbrl.prediction.held_out import Segments
from mbrl.run import Run
from worldmodel.base import WorldModel
from worldmodel.metrics.plans import RankCorrelation, plan_returns, rank_correlation

PLANS = 12  # from each start
HORIZON = 5  # steps of a plan
SAMPLES = 4  # rollouts of a plan in the model
NO_DIFFERENCE = "no difference between plans"

Plans = tuple[Tensor, Tensor]  # actions [S, N, H, A] and their true returns [S, N]


@dataclass(frozen=True)
class Reality:
    """The simulator and the policy of the run that episodes are from.

    Attributes:
        env: the run's environment, for its specs.
        simulator: the perfect model.
        policy: the run's policy, exploring; None where it cannot act in the simulator.
        gamma: discount of one agent step.
    """

    env: EnvBase
    simulator: SimulatorModel
    policy: Acting | None
    gamma: float


class Ranking(NamedTuple):
    """Rank correlations of plans.

    Attributes:
        correlations: by name. `random` and `policy` are of single samples; names with `_mean` of the mean of SAMPLES
            samples, with `_greedy` at temperature 0.
        left_out: the names of others, with the reason.
    """

    correlations: dict[str, RankCorrelation]
    left_out: dict[str, str]


def reality_of(run: Run, success_bonus: float) -> Reality | None:
    """The simulator and the policy of a run; None without snapshots in its replay.

    Args:
        run: the run.
        success_bonus: bonus at success in the simulator's rewards.
    """
    settings: dict[str, Any] = {"success_bonus": success_bonus} if "success_bonus" in run.config.env else {}
    env = run.make_env(**settings)
    simulator = simulator_for(env, lambda: env)
    if simulator is None:
        env.close()
        return None
    policy = run.policy
    policy.explore = True
    given = {*simulator.observations, *(("frames",) if "pixels" in simulator.observations else ())}
    acts = set(policy.observations) <= given
    return Reality(env, simulator, policy if acts else None, float(run.config.replay.gamma))


def rank_plans(
    model: WorldModel,
    reality: Reality,
    starts: Segments,
    seed: int,
    rows: int,
    on_starts: Callable[[int], Any] = lambda count: None,
) -> Ranking:
    """Rank plans from recorded states in the model and in the simulator.

    Args:
        model: the model, which predicts rewards.
        reality: what the plans lead to.
        starts: S segments with snapshots. Plans start at the end of their context.
        seed: seed of plans and of sampled codes.
        rows: starts whose plans are imagined side by side.
        on_starts: called with the number of starts that were completed.
    """
    horizon, training = min(HORIZON, model.max_horizon), model.training
    kinds: dict[str, Callable[[TensorDictBase], Plans]] = {"random": partial(_random_plans, reality, horizon)}
    if reality.policy is not None:
        kinds["policy"] = partial(_policy_plans, reality, reality.policy, horizon)
    real: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    imagined: dict[str, list[Tensor]] = {}
    model.eval()
    with fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for first in range(0, len(starts), rows):
            context = starts[first : first + rows].before()
            for kind, draw in kinds.items():
                actions, returns = draw(context)
                real[kind].append(returns)
                for name, predicted in _imagined(model, context, actions, reality.gamma).items():
                    imagined.setdefault(kind + name, []).append(predicted)
            on_starts(len(context))
    model.train(training)
    return _correlations({kind: torch.cat(parts) for kind, parts in real.items()}, imagined, model, reality)


def _random_plans(reality: Reality, horizon: int, context: TensorDictBase) -> Plans:
    """Plans of uniformly random actions."""
    actions = torch.rand(len(context), PLANS, horizon, context["action"].shape[-1]) * 2 - 1
    return actions, plan_returns(reality.simulator, context, actions, reality.gamma).squeeze(-1)


def _policy_plans(reality: Reality, policy: Acting, horizon: int, context: TensorDictBase) -> Plans:
    """Actions of the policy in the simulator, on the frames that they lead to."""
    repeated = context.repeat_interleave(PLANS, 0)
    rollout = imagine(reality.simulator, policy, reality.env, repeated, len(repeated), horizon)
    returns = (rollout["next", "reward"].squeeze(-1) * reality.gamma ** torch.arange(horizon)).sum(1)
    shape = (len(context), PLANS)
    return rollout["action"].unflatten(0, shape), returns.unflatten(0, shape)


def _imagined(model: WorldModel, context: TensorDictBase, actions: Tensor, gamma: float) -> dict[str, Tensor]:
    """Returns [S, N, K] of plans in the model, by the ending of their name."""
    samples = plan_returns(model, context, actions, gamma, SAMPLES)
    found, temperature = {"": samples, "_mean": samples.mean(2, keepdim=True)}, model.temperature
    if temperature is not None:
        model.set_temperature(0.0)
        found["_greedy"] = plan_returns(model, context, actions, gamma)
        model.set_temperature(temperature)
    return found


def _correlations(
    real: dict[str, Tensor], imagined: dict[str, list[Tensor]], model: WorldModel, reality: Reality
) -> Ranking:
    ranking = Ranking({}, {})
    for name, parts in imagined.items():
        true, predicted = real[name.partition("_")[0]], torch.cat(parts)
        if not (true != true[:, :1]).any():
            ranking.left_out[name] = f"{NO_DIFFERENCE} in the simulator"
        elif not (predicted != predicted[:, :1]).any():
            ranking.left_out[name] = f"{NO_DIFFERENCE} in the model"
        else:
            ranking.correlations[name] = rank_correlation(predicted, true)
    if reality.policy is None:
        ranking.left_out["policy"] = "the policy needs observations that the simulator as a world model does not give"
    if model.temperature is None:
        ranking.left_out["greedy"] = "the model has no temperature"
    return ranking
