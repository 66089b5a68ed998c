"""Adapter that gives a policy iVideoGPT's dynamics-token embeddings as observations.

R rollout rows, B batch, T time, L width of the latents of a frame (`CompressiveTokenizer.latent_size`), A action.
"""

from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from worldmodel.base import WorldModel
from worldmodel.ivideogpt.reconstruction import Reconstructor
from worldmodel.ivideogpt.rollout.rollout import Rollouts
from worldmodel.ivideogpt.rollout.state import ImaginedState
from worldmodel.ivideogpt.training import TrainingPlan, gradient_step
from worldmodel.latent_base import EmbeddedWorldModel
from worldmodel.outcome import Outcome


class Step(NamedTuple):
    """Where a rollout stands.

    Attributes:
        state: That of the model.
        latents: [R, L] of the newest frame.
    """

    state: ImaginedState
    latents: Tensor


class EmbeddedIVideoGPT(EmbeddedWorldModel):
    """Imagines the embedding of frames, and decodes none. It has no weights of its own.

    The embedding [2 L] of a step is the codes of its frame's dynamics tokens and of those of the frame before, so that
    what moves can be told. With the episode's initial frame as the context, real and imagined frames have embeddings of
    one kind: a policy cannot tell them apart by how they are painted (after STORM, arXiv 2310.09615, and TWM,
    arXiv 2303.07109, whose policies read the discrete latents of their world models).

    Args:
        model: The model, with conditioning.initial.
        rollouts: Its rollouts.
        reconstructor: Its reconstructor.
        plan: What its updates train.

    Raises:
        ValueError: The tokens of its frames depend on where a segment begins, or its rewards are predicted from frames.
    """

    def __init__(self, model: WorldModel, rollouts: Rollouts, reconstructor: Reconstructor, plan: TrainingPlan) -> None:
        super().__init__()
        if "initial" not in model.context_keys:
            raise ValueError(
                "a policy that reads embeddings needs a world model in which a frame has the same tokens wherever a "
                "segment begins: set agent.world_model.conditioning.initial=true"
            )
        if rollouts.frame_rewards is not None:
            raise ValueError(
                "a policy that reads embeddings imagines no frames, which this reward network needs: choose "
                "reward_network@agent.world_model.reward_network=tokens, or agent.world_model.reward_network=null"
            )
        self._model = (model,)  # In a tuple: its weights are saved with the agent's world model.
        self.rollouts, self.reconstructor, self.plan = rollouts, reconstructor, plan
        self.context_length, self.max_horizon = model.context_length, model.max_horizon
        self.action_dim, self.context_keys = model.action_dim, model.context_keys
        self.predicts_reward, self.predicts_termination = model.predicts_reward, model.predicts_termination
        self.trained_horizon = model.trained_horizon
        self.temperature, self.embedding_size = model.temperature, 2 * self.frame_size

    @property
    def model(self) -> WorldModel:
        return self._model[0]

    @property
    def frame_size(self) -> int:
        return self.rollouts.tokenizer.latent_size

    @property
    def updates(self) -> int:
        updates: Tensor = self.model.get_buffer("updates")
        return int(updates)

    def changes_after(self, updates: int) -> bool:
        return self.plan.changes_codes(updates)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One gradient step of the network that predicts rewards from tokens, on the first of two steps.

        Args:
            batch: [B, 2] with `embedding`, `action` and, under "next", `reward` and `terminated`.
        """
        network, size = self.rollouts.token_rewards, self.frame_size
        if network is None:
            return {}
        latents, after = batch["embedding"][..., :size], batch["next"][:, 0]
        logits = network.logits(latents[:, 0], latents[:, 1], batch["action"][:, 0])
        loss = network.loss(logits, after["reward"], after["terminated"])
        optimizer, most = self.model.optimizers["reward_network"], self.plan.clip_norm
        gradient_step(optimizer, loss, done=self.updates, warmup=0, clip_norm=most, name="reward_network")
        error = (network.read(logits.detach()) - after["reward"]).abs().mean()
        return {"embedded_reward_loss": loss.detach(), "embedded_reward_error": error}

    def latents(self, pixels: Tensor, initial: Tensor) -> Tensor:
        return self.reconstructor.latents(pixels, initial)

    def start(self, context: TensorDictBase) -> Step:
        state = self.model.start(context)
        return Step(state, self._latents(state))

    def step(self, state: Step, action: Tensor) -> tuple[Step, TensorDict]:
        after, frame = self.rollouts.advance(state.state, action)
        latents = self._latents(after)
        prediction = frame.predictions()
        prediction["embedding"] = torch.cat([latents, state.latents], -1)
        return Step(after, latents), prediction

    def fork(self, state: Step, n: int) -> Step:
        return Step(self.model.fork(state.state, n), state.latents.repeat_interleave(n, 0))

    def outcome(self, state: Step, actions: Tensor, frames: int = 0) -> Outcome:
        return self.model.outcome(state.state, actions, frames)

    def set_temperature(self, value: float) -> None:
        self.model.set_temperature(value)

    def _latents(self, state: ImaginedState) -> Tensor:
        assert state.tokens is not None, "real frames precede what is imagined"
        return self.rollouts.tokenizer.dynamics_quantize.vectors(self.rollouts.layout.codes(state.tokens))
