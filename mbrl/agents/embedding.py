"""Policies that read a world model's embedding of the newest frames instead of the frames.

B batch, R records of an episode, L width of the latents of a frame.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded

from mbrl.agents.model_learners import REWARD_STEPS
from mbrl.data.episodes import EMBEDDING, INITIAL, initial_frames
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from policies.base import Policy
from worldmodel.base import WorldModel
from worldmodel.latent_base import EmbeddedWorldModel


class EmbeddingActor(TensorDictModuleBase):
    """Embeds the frames of an episode and calls an actor on the embedding.

    It reads `pixels`, and `initial` and `before` of the previous step: the first frame of the episode and the latents
    of the frame before. Under "next" it writes both for the next step.
    """

    def __init__(self, model: EmbeddedWorldModel, actor: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys = ["pixels", INITIAL, "before", "is_init"]
        self.out_keys = ["action", ("next", INITIAL), ("next", "before")]
        self.model, self.actor, self.weights = model, actor, model.model  # the weights follow the policy to its device

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        shape, rows = tensordict.batch_size, tensordict.select(*self.in_keys).reshape(-1)
        first = rows["is_init"].view(-1, 1)
        initial = initial_frames(rows["pixels"], rows[INITIAL], first)
        now = self.model.latents(rows["pixels"][:, None], initial)[:, 0]
        unknown = first | ~rows["before"].any(1, keepdim=True)
        before = torch.where(unknown, now, rows["before"])
        seen = TensorDict({EMBEDDING: torch.cat([now, before], -1)}, batch_size=rows.batch_size)
        action = self.actor(seen)["action"]
        carried = TensorDict({INITIAL: initial, "before": now}, batch_size=rows.batch_size)
        tensordict.setdefault("next", TensorDict(batch_size=shape, device=tensordict.device))
        tensordict["next"].update(carried.reshape(shape))
        return tensordict.set("action", action.reshape(*shape, -1))


class EmbeddingPolicy(Policy):
    """Acts with a policy that reads `embedding`, on the frames of an environment.

    Args:
        policy: reads embeddings, and learns.
        model: embeds frames. It learns elsewhere.
        observation_spec: that of the environment, with `pixels`.
    """

    def __init__(self, policy: Policy, model: EmbeddedWorldModel, observation_spec: Composite) -> None:
        super().__init__()
        self.policy, self.model = policy, model
        self.actor: EmbeddingActor = EmbeddingActor(model, policy.acting)
        latents: TensorSpec = Unbounded((model.frame_size,))
        self.carried = Composite(**{INITIAL: observation_spec["pixels"].clone(), "before": latents})
        # `replay.online.head` and `model.updates` when embeddings of finished episodes were last stored; -1: never.
        self.noted = {"records": -1, "updates": 0}
        self._unfinished = 0  # records of the unfinished episode with embeddings; checkpoints leave this episode out

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Does nothing: the policy and the world model have updates of their own."""
        return {}

    def recall(self, history: TensorDictBase) -> TensorDict:
        """As Policy.recall, from `pixels` and `initial`."""
        initial = history[INITIAL][:, 0].to(self.device)
        before = self.model.latents(history["pixels"][:, -2:][:, :1].to(self.device), initial)[:, 0]
        return TensorDict({INITIAL: initial, "before": before}, batch_size=initial.shape[:1])

    def learn_rewards(self, replay: Replay) -> dict[str, Tensor]:
        """One update of the model's rewards on steps of the replay, half of them from the newest tenth of episodes."""
        return self.model.update(replay.sequences(REWARD_STEPS, 2, recent=0.5).to(self.device))

    def store_embeddings(self, replay: Replay) -> None:
        """Store the embeddings of the new records of the replay.

        When an episode ends and the encoders have changed since, the embeddings of all records are recomputed.
        """
        online, before = replay.online, self.noted
        first, ended = max(before["records"], 0) + self._unfinished, online.head != before["records"]
        if ended:
            self.noted = {"records": online.head, "updates": self.model.updates}
            first = 0 if self.model.changes_after(before["updates"]) else first
        if ended or online.unfinished != self._unfinished:
            self._unfinished = online.unfinished
            replay.note_latents(first, self._embeddings)

    def _embeddings(self, episode: TensorDictBase, first: int) -> TensorDictBase:
        """The embeddings [R - first] of a record episode [R] but its first rows."""
        pixels = episode["pixels"].to(self.device)
        latents = self.model.latents(pixels[None, max(first - 1, 0) :], pixels[:1])[0]
        if first == 0:  # no frame is before the first
            latents = torch.cat([latents[:1], latents])
        return TensorDict({EMBEDDING: torch.cat([latents[1:], latents[:-1]], -1)}, batch_size=[len(latents) - 1])


def embedding_policy(
    policy: Policy, world_model: WorldModel | None, observation_spec: Composite
) -> EmbeddingPolicy | None:
    """Wrap a policy that reads a world model's embeddings so that it acts on frames; None for other policies.

    Args:
        policy: the policy that learns.
        world_model: the agent's world model.
        observation_spec: that of the environment.

    Raises:
        UserError: the world model has no embeddings, or those of another width.
    """
    if not policy.embedding_size:
        return None
    try:
        model = world_model.embedded() if world_model is not None else None
    except (TypeError, ValueError) as error:
        raise UserError(f"agent.policy.embedding_size: {error}") from None
    if not isinstance(model, EmbeddedWorldModel):
        raise UserError("agent.policy.embedding_size: the agent has no world model that embeds frames; set it to null")
    if model.embedding_size != policy.embedding_size:
        raise UserError(
            f"agent.policy.embedding_size is {policy.embedding_size}, and this world model's embeddings have width "
            f"{model.embedding_size}: set agent.policy.embedding_size={model.embedding_size}"
        )
    return EmbeddingPolicy(policy, model, observation_spec).to(policy.device)
