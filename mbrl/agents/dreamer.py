"""DreamerV3's agent (Hafner et al. 2023, arXiv 2301.04104): a world model and an actor-critic inside it, in one update.

B segments, T steps of each, H imagined steps, F features of a latent state, A action.

The TensorDict that the environment and the actor pass to each other carries the latent state of the current episode.
Several workers and an evaluation in between therefore do not mix their states. The replay stores the latent state with
the observation that it was inferred from. Every update starts from stored states and writes back the ones that the
newer weights infer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded

from mbrl.agents.agent import Agent
from mbrl.agents.cloning import Cloning
from mbrl.agents.cuda_graphs import Captured, Stacked
from mbrl.agents.learners import Learner, require_latent_imagination
from mbrl.agents.schedule import Schedule
from mbrl.replay.replay import Replay
from policies.base import Metrics, Policy, forget_moments, gradient_step, require_finite
from policies.ranges import Horizon, Weight
from worldmodel.latent_base import LatentWorldModel

FEATURES = "features"  # key of the features of a latent state, the input of the actor-critic


class LatentActor(TensorDictModuleBase):
    """Infers the latent state at each step of an episode and acts on it.

    It reads the observation, and `latent` and `last_action` of the previous step. It writes `action`, and under "next"
    the new `latent` and `last_action`.
    """

    def __init__(self, world_model: LatentWorldModel, behaviour: Any) -> None:
        super().__init__()
        self.world_model, self.behaviour = world_model, behaviour
        latents = [("latent", key) for key in world_model.unknown.keys()]
        carried = [*latents, "last_action"]
        self.in_keys = [*world_model.observations, *carried, "is_init"]
        self.out_keys = ["action", *(("next", key) for key in carried)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        shape, rows = tensordict.batch_size, tensordict.select(*self.in_keys).reshape(-1)
        state = self.world_model.follow(rows["latent"], rows["last_action"], rows, rows["is_init"])
        action = self.act(self.world_model.features(state))
        carried = TensorDict(latent=self.world_model.pack(state), last_action=action, batch_size=rows.batch_size)
        tensordict.setdefault("next", TensorDict(batch_size=shape, device=tensordict.device))
        tensordict["next"].update(carried.reshape(shape))
        return tensordict.set("action", action.reshape(*shape, -1))

    def act(self, features: Tensor) -> Tensor:
        """Features [N, F] -> actions [N, A]."""
        action: Tensor = self.behaviour.actor(TensorDict({FEATURES: features}, batch_size=[len(features)]))["action"]
        return action


class LatentPolicy(Policy):
    """A world model and an actor-critic that acts on its latent states.

    Args:
        observation_spec: that of the environment.
        action_spec: that of the environment.
        world_model: makes a `LatentWorldModel` when called with both specs, and `terminates=True` where that is given.
        behaviour: makes a `policies.actor_critic.ActorCritic`, or a policy with the same losses, for vectors.
        terminates: whether the environment terminates episodes.
        cuda_graphs: whether a GPU computes losses and gradients of an update in CUDA graphs.
    """

    actor: LatentActor
    learns_from = "segments"

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        world_model: Callable[..., LatentWorldModel],
        behaviour: Callable[..., Policy],
        terminates: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.cuda_graphs = cuda_graphs
        model = world_model(observation_spec, action_spec, **({"terminates": True} if terminates else {}))
        learner = behaviour(observation_spec, action_spec, observation=FEATURES, feature_size=model.feature_size)
        self.actor = LatentActor(model, learner)
        latent = {key: Unbounded(value.shape, dtype=value.dtype) for key, value in model.unknown.items()}
        self.carried = Composite(latent=Composite(latent), last_action=Unbounded(action_spec.shape))
        self.optimizers = {**model.optimizers, **learner.optimizers}

    @property
    def world_model(self) -> LatentWorldModel:
        return self.actor.world_model

    @property
    def behaviour(self) -> Any:
        return self.actor.behaviour

    def end_cloning(self) -> None:
        """Forget the moments of the actor; the world model's loss stays the same."""
        forget_moments(self.optimizers["actor"])

    def update(self, batch: TensorDictBase) -> Metrics:
        """A LatentLearner updates both parts, not the policy itself."""
        raise TypeError("a LatentPolicy learns through mbrl.agents.dreamer.LatentLearner")


class LossesAndGradients(NamedTuple):
    """Result of the losses of an update.

    Attributes:
        metrics: All metrics.
        latents: Packed latent states [B * T].
        gradients: Of each parameter; None where the loss does not depend on it.
    """

    metrics: Stacked
    latents: TensorDict
    gradients: list[Tensor | None]


class LatentLearner(Learner):
    """Trains everything in one gradient step.

    The world model learns from replayed segments, the actor-critic from rollouts imagined from each of their steps, and
    the critic from these steps too.

    Args:
        policy: the policy that learns.
        schedule: its `batch_size` and `segment_length` are B and T of an update.
        horizon: H, imagined steps from every replayed one.
        replay_value_weight: weight of the critic's loss on replayed steps; its gradient reaches the world model.
    """

    policy: LatentPolicy

    def __init__(self, policy: LatentPolicy, schedule: Schedule, *, horizon: int, replay_value_weight: float) -> None:
        super().__init__(policy, schedule.batch_size)
        require_latent_imagination(schedule)
        self.segment_length, self.horizon = schedule.segment_length, horizon
        self.replay_value_weight = replay_value_weight
        self._captured = Captured(self._differentiate) if policy.cuda_graphs else None

    @property
    def imitates(self) -> bool:
        return True

    def update(self, replay: Replay, cloning_weight: float) -> Metrics:
        index, batch = self._read(replay, replay.sequences(self.batch_size, self.segment_length, before=1))
        captured = self._captured if self.policy.device.type == "cuda" else None
        result = (captured or self._differentiate)(batch)
        metrics = result.metrics.named()
        self._require_finite(result.metrics)
        del metrics["loss"]
        self._write(replay, index, result.latents)
        for parameter, gradient in zip(self._parameters(), result.gradients, strict=True):
            parameter.grad = gradient
        for optimizer in self.policy.optimizers.values():  # outside the graph: it computes with a Python step count
            optimizer.step()
        self.policy.behaviour.update_slow_critic()
        cloning_metrics = self.imitate(replay, cloning_weight) if cloning_weight > 0 else {}
        return cloning_metrics | metrics  # Those of the world model on the replay replace those on demonstrations.

    def imitate(self, replay: Replay, weight: float) -> Metrics:
        """One gradient step of imitation.

        The actor maximises the likelihood of demonstrated actions in the latent states of demonstrated steps. The world
        model learns from these steps too. The critic does not learn in this step.
        """
        self.imitations += 1
        model = self.policy.world_model
        index, batch = self._read(replay, replay.demo_sequences(self.batch_size, self.segment_length, before=1))
        fitted = model.learn(batch["segments"], batch["before"])
        features = model.features(fitted.state).detach()
        actions = self.policy.behaviour.actor.distribution(features[:, :-1])
        loss = -actions.log_prob(batch["segments", "action"][:, 1:-1]).mean()
        metrics = {**_model_metrics(fitted), "cloning_loss": loss.detach()}
        self._require_finite(Stacked.of(metrics))
        self._write(replay, index, model.pack(fitted.state))
        gradient_step(
            fitted.loss + weight * loss, [o for name, o in self.policy.optimizers.items() if name != "critic"]
        )
        return metrics

    def _read(self, replay: Replay, segments: TensorDictBase) -> tuple[Tensor, TensorDict]:
        """Replay indices [B, 1 + T] of the segments; and the segments with the latents `before` them, on the device."""
        unknown, device = self.policy.world_model.unknown, self.policy.device
        index = segments.pop("index").squeeze(-1)
        before = replay.read_latents(index[:, 0], unknown.to(index.device))
        batch = {"segments": segments.to(device), "before": before.to(device)}
        return index, TensorDict(batch, batch_size=segments.batch_size[:1])

    def _write(self, replay: Replay, index: Tensor, latents: TensorDict) -> None:
        replay.write_latents(index[:, 1:].reshape(-1), latents.to(index.device))

    def _differentiate(self, batch: TensorDictBase) -> LossesAndGradients:
        """All losses and gradients, in place and without waiting for the GPU, so that a CUDA graph can capture them."""
        model, behaviour = self.policy.world_model, self.policy.behaviour
        fitted = model.learn(batch["segments"], batch["before"])
        features, latents = model.features(fitted.state), model.pack(fitted.state)  # [B, T, F]
        losses = behaviour.losses(self.dream(model.unpack(latents)))
        first_returns = losses.returns[:, 0].unflatten(0, features.shape[:2])
        after = batch["segments"][:, 1:]["next"]
        replay_loss = behaviour.replay_value_loss(
            features, after["reward"].squeeze(-1), after["terminated"].squeeze(-1), first_returns
        )
        parameters = self._parameters()
        for parameter in parameters:
            parameter.grad = None
        loss = fitted.loss + losses.actor + losses.critic + self.replay_value_weight * replay_loss
        loss.backward()
        metrics = {**_model_metrics(fitted), **losses.metrics, "replay_value_loss": replay_loss, "loss": loss}
        return LossesAndGradients(Stacked.of(metrics), latents, [parameter.grad for parameter in parameters])

    def _require_finite(self, metrics: Stacked) -> None:
        """Check the losses, first those of the world model, whose message names its learning rate; waits once."""
        numbers = Stacked(metrics.names, metrics.values.cpu()).named()
        losses = {name: value for name, value in numbers.items() if name.endswith("loss")}
        of_model = {name: value for name, value in losses.items() if name.startswith("model_")}
        require_finite(of_model, "lower agent.policy.world_model.learning_rate or check the batch")
        require_finite(losses)

    def _parameters(self) -> list[Tensor]:
        groups = [group for optimizer in self.policy.optimizers.values() for group in optimizer.param_groups]
        return [parameter for group in groups for parameter in group["params"]]

    @torch.no_grad()
    def dream(self, state: Any) -> TensorDict:
        """Imagine H steps from latent states [N]: rollouts [N, H + 1], the input of `ActorCritic.losses`."""
        model, actor = self.policy.world_model, self.policy.behaviour.actor
        features, actions = [model.features(state)], []
        for _ in range(self.horizon):
            actions.append(actor.distribution(features[-1]).sample())
            state = model.imagine(state, actions[-1])
            features.append(model.features(state))
        visited = torch.stack(features, 1)  # [N, H + 1, F]
        reward = model.reward(visited[:, 1:])
        zeros = torch.zeros_like(reward[:, :1])
        return TensorDict(
            {
                FEATURES: visited,
                "action": torch.stack([*actions, torch.zeros_like(actions[-1])], 1),
                "continue": model.continue_probability(visited),
                "next": {"reward": torch.cat((reward, zeros), 1)},
            },
            batch_size=visited.shape[:2],
        )


class DreamerV3(Agent):
    """An agent whose world model learns in the policy's own update.

    Args:
        policy: the world model and the actor-critic.
        schedule: `batch_size` and `segment_length` are those of an update. `real_ratio` is 0: the actor learns from
            imagination alone.
        horizon: as in `LatentLearner`.
        replay_value_weight: as in `LatentLearner`.
        cloning: how demonstrations are imitated, in gradient steps of their own; None does not.
    """

    policy: LatentPolicy

    def __init__(
        self,
        policy: LatentPolicy,
        *,
        schedule: Schedule,
        horizon: Horizon,
        replay_value_weight: Weight,
        cloning: Cloning | None = None,
    ) -> None:
        self.horizon = horizon
        learner = LatentLearner(policy, schedule, horizon=horizon, replay_value_weight=replay_value_weight)
        super().__init__(policy, schedule=schedule, learner=learner, cloning=cloning)

    @property
    def random_steps(self) -> int:
        """0: the untrained actor is close to uniform, and only steps that it takes have latent states in the replay."""
        return 0

    @property
    def imagined(self) -> tuple[LatentWorldModel, int]:
        return self.policy.world_model, self.horizon


def _model_metrics(fitted: Any) -> Metrics:
    return {f"model_{name}": value for name, value in fitted.metrics.items()}
