"""DreamerV3's agent (Hafner et al. 2023, arXiv 2301.04104): a world model and an actor-critic inside it, in one update.

B segments, T steps of each, H imagined steps, F features of a latent state, A action.

The latent state of an episode under way lives in the TensorDict that env and actor hand to each other, so that several
workers and an evaluation in between do not disturb one another. It comes into the replay with the observation that
it was made of, and every update goes on from it and writes back what newer weights make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded

from mbrl.agents.agent import Agent, Metrics
from mbrl.agents.cloning import Cloning
from mbrl.replay.replay import Replay
from policies.base import Policy, descend, require_finite
from worldmodel.base import LatentWorldModel

FEATURES = "features"  # what the actor-critic reads of a latent state


class LatentActor(TensorDictModuleBase):
    """Follows the world model's latent state along an episode and acts on it.

    Reads the observation, and what it carried here from the step before; writes `action`, and under "next" what it
    carries on: `latent`, the state now, and `last_action`.
    """

    def __init__(self, world_model: LatentWorldModel, behaviour: Any) -> None:
        super().__init__()
        self.world_model, self.behaviour = world_model, behaviour
        latents = [("latent", key) for key in world_model.unknown.keys()]
        carried = [*latents, "last_action"]
        self.in_keys = [*world_model.observations, *carried, "is_init"]
        self.out_keys = ["action", *(("next", key) for key in carried)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        shape, now = tensordict.batch_size, tensordict.select(*self.in_keys).reshape(-1)
        state = self.world_model.follow(now["latent"], now["last_action"], now, now["is_init"])
        action = self.act(self.world_model.features(state))
        carried = TensorDict(latent=self.world_model.pack(state), last_action=action, batch_size=now.batch_size)
        tensordict.setdefault("next", TensorDict(batch_size=shape, device=tensordict.device))
        tensordict["next"].update(carried.reshape(shape))
        return tensordict.set("action", action.reshape(*shape, -1))

    def act(self, features: Tensor) -> Tensor:
        """Features [N, F] -> actions [N, A]."""
        action: Tensor = self.behaviour.actor(TensorDict({FEATURES: features}, batch_size=[len(features)]))["action"]
        return action


class LatentPolicy(Policy):
    """A world model and an actor-critic on its latent states: neither acts without the other.

    Args:
        observation_spec, action_spec: the environment's.
        world_model: makes a LatentWorldModel of both specs.
        behaviour: makes policies.actor_critic.ActorCritic, or a policy with its losses, for vectors.
    """

    actor: LatentActor

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        world_model: Callable[..., LatentWorldModel],
        behaviour: Callable[..., Policy],
    ) -> None:
        super().__init__()
        model = world_model(observation_spec, action_spec)
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

    def update(self, batch: TensorDictBase) -> Metrics:
        """Not by itself: the agent below draws what both parts learn from."""
        raise TypeError("a LatentPolicy learns through mbrl.agents.dreamer.DreamerV3")


class DreamerV3(Agent):
    """One gradient step trains all: the world model on replayed segments, the actor-critic on what it imagines from
    each of their steps, and the critic on these steps too.

    Args:
        policy: a LatentPolicy.
        batch_size, segment_length: segments [B, T] of an update.
        updates_per_step: updates per agent step. learning_starts: agent steps before the first.
        horizon: H, imagined steps from every replayed one.
        replay_value_weight: of the critic's loss on replayed steps; its gradient reaches the world model.
        cloning: how demonstrations are imitated, in steps of their own as nothing imagined is demonstrated; None: not.
    """

    policy: LatentPolicy

    def __init__(
        self,
        policy: LatentPolicy,
        world_model: None = None,
        imagination: None = None,
        *,
        batch_size: int,
        segment_length: int,
        updates_per_step: float,
        learning_starts: int,
        horizon: int,
        replay_value_weight: float,
        cloning: Cloning | None = None,
    ) -> None:
        super().__init__(
            policy,
            batch_size=batch_size,
            updates_per_step=updates_per_step,
            learning_starts=learning_starts,
            cloning=cloning,
        )
        self.segment_length, self.horizon, self.replay_value_weight = segment_length, horizon, replay_value_weight

    @property
    def random_steps(self) -> int:
        """None: the actor begins all but uniform, and only what it saw has latent states."""
        return 0

    @property
    def imagined(self) -> tuple[LatentWorldModel, int]:
        return self.policy.world_model, self.horizon

    def _update_policy(self, replay: Replay) -> Metrics:
        self.counts["policy"] += 1
        model, behaviour = self.policy.world_model, self.policy.behaviour
        segments, learned = self._learn(replay, replay.sequences(self.batch_size, self.segment_length, before=1))
        features = model.features(learned.state)  # [B, T, F]
        behaved = behaviour.losses(self.dream(model.unpack(model.pack(learned.state))))
        first_returns = behaved.returns[:, 0].unflatten(0, features.shape[:2])
        after = segments["next"]
        replayed = behaviour.replay_value_loss(
            features, after["reward"].squeeze(-1), after["terminated"].squeeze(-1), first_returns
        )
        require_finite({"actor": behaved.actor, "critic": behaved.critic, "replay_value": replayed})
        loss = learned.loss + behaved.actor + behaved.critic + self.replay_value_weight * replayed
        descend(loss, self.policy.optimizers.values())
        behaviour.update_slow_critic()
        imitated = self._imitate(replay, self._cloning_weight) if self._cloning_weight > 0 else {}
        # what the model makes of demonstrations is not logged in the place of what it makes of the replay
        return {**imitated, **_of_model(learned), **behaved.metrics, "replay_value_loss": replayed.detach()}

    def _imitate(self, replay: Replay, weight: float) -> Metrics:
        """The actor climbs the likelihood of demonstrated actions in the latent states that the world model, which
        learns from these steps too, makes of them; the critic learns from imagination alone.
        """
        self.cloned += 1
        segments, learned = self._learn(replay, replay.demo_sequences(self.batch_size, self.segment_length, before=1))
        features = self.policy.world_model.features(learned.state).detach()
        actions = self.policy.behaviour.actor.distribution(features[:, :-1])
        loss = -actions.log_prob(segments["action"][:, :-1]).mean()
        require_finite({"cloning_loss": loss})
        descend(learned.loss + weight * loss, [o for name, o in self.policy.optimizers.items() if name != "critic"])
        return {**_of_model(learned), "cloning_loss": loss.detach()}

    def _learn(self, replay: Replay, segments: TensorDictBase) -> tuple[TensorDictBase, Any]:
        """Steps [B, T] of segments [B, 1 + T], and what the world model makes of them; the replay remembers that."""
        model, device = self.policy.world_model, self.policy.device
        index = segments.pop("index").squeeze(-1)
        before = replay.read_latents(index[:, 0], model.unknown.cpu())
        segments = segments.to(device)
        learned = model.learn(segments, before.to(device))
        replay.write_latents(index[:, 1:].reshape(-1), model.pack(learned.state).cpu())
        return segments[:, 1:], learned

    @torch.no_grad()
    def dream(self, state: Any) -> TensorDict:
        """Roll the actor out from latent states [N]: rollouts [N, H + 1] as `ActorCritic.losses` wants them."""
        model, actor = self.policy.world_model, self.policy.behaviour.actor
        features, actions = [model.features(state)], []
        for _ in range(self.horizon):
            actions.append(actor.distribution(features[-1]).sample())
            state = model.imagine(state, actions[-1])
            features.append(model.features(state))
        visited = torch.stack(features, 1)  # [N, H + 1, F]
        reward = model.reward(visited[:, 1:])
        none = torch.zeros_like(reward[:, :1])
        return TensorDict(
            {
                FEATURES: visited,
                "action": torch.stack([*actions, torch.zeros_like(actions[-1])], 1),
                "continue": model.goes_on(visited),
                "next": {"reward": torch.cat((reward, none), 1)},
            },
            batch_size=visited.shape[:2],
        )


def _of_model(learned: Any) -> Metrics:
    return {f"model_{name}": value for name, value in learned.metrics.items()}
