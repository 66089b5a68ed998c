"""TD-MPC2's policy (Hansen et al. 2024, arXiv 2310.16828): plans in the latent states of a model that it trains.

B segments or decisions, H predicted steps, N candidates, M proposals, D latent state, A action, K frame stack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec

from mbrl.agents.plan_following import PlanFollower
from mbrl.data.frames import stacked
from mbrl.errors import UserError
from policies.base import Plan, Planner, Policy, gradient_step, require_finite
from policies.latent_base import LatentBehaviour
from policies.ranges import CandidatesOrZero, Horizon, Norm, PositiveShare, Weight
from worldmodel.latent_base import LatentDynamics


class LatentPlanningActor(PlanFollower):
    """Encodes the observation and plans from there.

    A plan scores the discounted sum of predicted rewards, and the critics' value of the state that it ends in, each
    times the predicted probability that the episode has gone on until then.

    Args:
        world_model: encodes and predicts.
        behaviour: proposes actions and values states.
        planner: searches.
        observation_spec: has the observations of the model.
        actions: A.
        gamma: discount of one agent step.
        replan_every: see `PlanFollower`.
        proposals: M, candidates that the prior makes.
    """

    def __init__(
        self,
        world_model: LatentDynamics,
        behaviour: LatentBehaviour,
        planner: Planner,
        *,
        observation_spec: Composite,
        actions: int,
        gamma: float,
        replan_every: int,
        proposals: int,
    ) -> None:
        observed = {key: observation_spec[key].clone() for key in world_model.observations}
        super().__init__(observed, horizon=planner.horizon, actions=actions, replan_every=replan_every, further={})
        self.world_model, self.behaviour, self.planner = world_model, behaviour, planner
        self.gamma, self.proposals = gamma, proposals

    def plan(self, rows: TensorDictBase) -> Plan:
        latent = self.world_model.encode(rows)
        proposals = self.propose(latent) if self.proposals else None
        return self.planner(partial(self.score, latent), rows["plan_mean"], proposals)

    def propose(self, latent: Tensor) -> Tensor:
        """Actions [B, M, H, A] of the prior, drawn along predicted states from `latent` [B, D]."""
        state = latent[:, None].expand(-1, self.proposals, -1)
        actions = [self.behaviour.sample(state)[0]]
        for _ in range(self.planner.horizon - 1):
            state = self.world_model.advance(state, actions[-1])
            actions.append(self.behaviour.sample(state)[0])
        return torch.stack(actions, 2)

    def score(self, latent: Tensor, actions: Tensor) -> Tensor:
        """Scores [B, N] of plans [B, N, H, A] from `latent` [B, D]."""
        states = [latent[:, None].expand(-1, actions.shape[1], -1)]
        for action in actions.unbind(2):
            states.append(self.world_model.advance(states[-1], action))
        rewards = self.world_model.reward(torch.stack(states[:-1], 2), actions).squeeze(-1)  # [B, N, H]
        continues = self.world_model.continue_probability(torch.stack(states[1:], 2)).squeeze(-1)  # [B, N, H]
        earned = torch.cat((rewards, self.behaviour.value(states[-1])), -1)
        earned[..., 1:] *= continues.cumprod(-1)
        return earned @ self.gamma ** torch.arange(len(states), device=latent.device)


class LatentPlanner(Policy):
    """Acts by planning in a model's latent states; the model, critics and prior learn from segments of real steps.

    One update unrolls the model from the first step of each segment, and trains it and the critics along the predicted
    states; then it trains the prior there. The loss of predicted step t is weighted by `decay`^t, and by 0 after the
    end of an episode that terminated.

    Args:
        observation_spec: that of the environment.
        action_spec: that of the environment.
        world_model: makes a `LatentDynamics` when called with both specs, and `terminates=True` where that is given.
        behaviour: makes a `LatentBehaviour` when called with the action spec.
        planner: searches for plans.
        gamma: discount of one agent step.
        terminates: whether the environment terminates episodes.
        replan_every: agent steps that a plan is followed before the next is made, 1 to the planner's horizon.
        proposals: M of the planner's candidates are rollouts of the prior in the model.
        decay: factor of the losses from one predicted step to the next.
        value_weight: weight of the critics' loss.
        clip: largest norm of a gradient; larger ones are scaled to it.
        cuda_graphs: see `Policy`.

    Raises:
        UserError: settings do not fit together.
    """

    learns_from = "segments"
    actor: LatentPlanningActor

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        world_model: Callable[..., LatentDynamics],
        behaviour: Callable[..., LatentBehaviour],
        planner: Planner,
        gamma: PositiveShare,
        terminates: bool = False,
        replan_every: Horizon = 1,
        proposals: CandidatesOrZero = 24,
        decay: PositiveShare = 0.5,
        value_weight: Weight = 0.1,
        clip: Norm = 20.0,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.cuda_graphs = cuda_graphs
        if not 0 <= proposals <= planner.candidates:
            raise UserError(
                f"agent.policy.proposals ({proposals}) must be 0 to planner.candidates ({planner.candidates})"
            )
        model = world_model(observation_spec, action_spec, **({"terminates": True} if terminates else {}))
        learner = behaviour(action_spec, latent_size=model.latent_size, gamma=gamma)
        self.actor = LatentPlanningActor(
            model, learner, planner, observation_spec=observation_spec, actions=action_spec.shape[-1], gamma=gamma,
            replan_every=replan_every, proposals=proposals,
        )  # fmt: skip
        self.carried = Composite({key: spec.clone() for key, spec in self.actor.memory.items()})
        self.optimizers = {**model.optimizers, **learner.optimizers}
        self.decay, self.value_weight, self.clip = decay, value_weight, clip
        self.segment_rows = planner.horizon + 1
        frame_stack = observation_spec["frames"].shape[-3] // 3 if "frames" in model.observations else 1
        self.segment_history = frame_stack - 1

    @property
    def world_model(self) -> LatentDynamics:
        return self.actor.world_model

    @property
    def behaviour(self) -> LatentBehaviour:
        return self.actor.behaviour

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One gradient step of the model and the critics, then one of the prior.

        Args:
            batch: [B, K - 1 + H + 1] as in `Policy.update`, for a policy that learns from segments.
        """
        segments = self._stacked(batch)
        action, after = segments["action"][:, :-1], segments["next"][:, :-1]
        weight = self._weight(segments)
        unrolled = self.world_model.learn(segments, weight[:, :-1])
        target = self.behaviour.target(unrolled.observed, after["reward"], after["terminated"])
        value_loss = self.behaviour.value_loss(unrolled.latent[:, :-1], action, target, weight[:, :-1])
        loss = unrolled.loss + self.value_weight * value_loss
        require_finite({**unrolled.metrics, "value_loss": value_loss})
        norm = gradient_step(loss, [self.optimizers["world_model"], self.optimizers["critic"]], self.clip)
        prior = self.behaviour.prior_loss(unrolled.latent.detach(), weight)
        require_finite({"prior_loss": prior.loss})
        gradient_step(prior.loss, [self.optimizers["prior"]], self.clip)
        self.behaviour.update_targets()
        metrics = {**unrolled.metrics, "value_loss": value_loss.detach(), "target_q": target.mean()}
        return {**metrics, **prior.metrics, "gradient_norm": norm}

    def _weight(self, segments: TensorDictBase) -> Tensor:
        """Factors [B, H + 1] of the losses of rows of segments: 0 for the final row of an episode and its copies."""
        ended = segments["next", "terminated"].squeeze(-1)
        before = torch.cat((torch.zeros_like(ended[:, :1]), ended[:, :-1]), 1)
        return ~before * self.decay ** torch.arange(ended.shape[1], device=ended.device)

    def _stacked(self, batch: TensorDictBase) -> TensorDictBase:
        """The segments [B, H + 1] of a batch, with `frames` where the model observes them."""
        history = self.segment_history
        segments = batch[:, history:]
        if "frames" in self.world_model.observations:
            segments["frames"] = stacked(batch["pixels"], history + 1)
        return segments
