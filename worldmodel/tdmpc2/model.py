"""TD-MPC2's latent dynamics (Hansen et al. 2024, arXiv 2310.16828).

Dimensions: B batch, H predicted steps, D latent state, A action, S state. Two-hot codes are TorchRL's.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite, TensorSpec
from torchrl.modules.functional import symexp, symlog
from torchrl.objectives import two_hot_cross_entropy

from worldmodel.latent_base import LatentDynamics, UnrolledLoss
from worldmodel.linear import Linear
from worldmodel.ranges import Bins, LearningRate, Limit, Number, NumberOrZero, Scale, Weight, Width
from worldmodel.shifts import random_shift
from worldmodel.tdmpc2.networks import (
    PixelEncoder,
    SimNorm,
    StateEncoder,
    hidden_layers,
    normal_init,
    normed,
)


class TDMPC2Dynamics(LatentDynamics):
    """Encoder, predictor of the next latent state, and predictor of rewards, without a decoder.

    Latent states are trained to be predictable and to predict rewards; the policy adds the loss of values. A continue
    head predicts from a next latent state whether the episode has terminated.

    Args:
        observation_spec: Has `frames` uint8 [3K, R, R], with `task` [N] where there are several tasks, or `state` [S].
        action_spec: Spec of actions [A].
        pixels: Whether it reads frames. False: the state.
        terminates: Whether the environment terminates episodes; the model then has a continue head.
        latent_size: D, a multiple of `simnorm_group`.
        width: Width of both hidden layers of the predictors.
        encoder_width: Width of the hidden layer of the encoder of states.
        simnorm_group: Size of the groups of numbers in a latent state that sum to 1.
        bins: Number of values of a reward's categorical distribution, evenly spaced in symlog space.
        limit: Largest value in symlog space: rewards lie within symexp(-limit) and symexp(limit).
        consistency: Weight of the error of predicted latent states.
        reward_weight: Weight of the cross-entropy of rewards.
        shift_pad: Largest random shift of frames in training, in pixels.
        learning_rate: Learning rate of Adam.
        encoder_rate: Factor of the learning rate of the encoder.

    Raises:
        ValueError: `latent_size` is not a multiple of `simnorm_group`, or the environment lacks the observed key.
    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        pixels: bool,
        terminates: bool = False,
        latent_size: Width = 512,
        width: Width = 512,
        encoder_width: Width = 256,
        simnorm_group: Number = 8,
        bins: Bins = 101,
        limit: Limit = 10.0,
        consistency: Weight = 20.0,
        reward_weight: Weight = 0.1,
        shift_pad: NumberOrZero = 3,
        learning_rate: LearningRate = 3e-4,
        encoder_rate: Scale = 0.3,
    ) -> None:
        super().__init__()
        if latent_size % simnorm_group:
            raise ValueError(
                f"tdmpc2: latent_size ({latent_size}) must be a multiple of {simnorm_group}, simnorm_group"
            )
        self.latent_size, self.shift_pad = latent_size, shift_pad
        self.consistency, self.reward_weight = consistency, reward_weight
        simnorm, inputs = SimNorm(simnorm_group), latent_size + action_spec.shape[-1]
        self.encoder = self._make_encoder(observation_spec, pixels, encoder_width, simnorm)
        hidden = (inputs, width, width)
        self.predictor = nn.Sequential(*hidden_layers(hidden), normed(width, latent_size, simnorm))
        last = Linear(width, bins)
        self.reward_head = nn.Sequential(*hidden_layers(hidden), last)
        self.continue_head: nn.Module | None = None
        if terminates:
            self.continue_head = nn.Sequential(*hidden_layers((latent_size, width, width)), nn.Linear(width, 1))
        normal_init(self)
        nn.init.zeros_(last.weight)
        self.register_buffer("bins", torch.linspace(-limit, limit, bins))
        self.bins: Tensor
        others = [parameter for name, parameter in self.named_parameters() if not name.startswith("encoder.")]
        groups: list[dict[str, Any]] = [
            {"params": [*self.encoder.parameters()], "lr": encoder_rate * learning_rate},
            {"params": others},
        ]
        self.optimizers = {"world_model": torch.optim.Adam(groups, lr=learning_rate, fused=True)}

    def _make_encoder(
        self, observation_spec: Composite, pixels: bool, width: int, simnorm: SimNorm
    ) -> PixelEncoder | StateEncoder:
        """Make the encoder, and set `observations`."""
        keys = [str(key) for key in observation_spec]
        key = "frames" if pixels else "state"
        if key not in keys:
            raise ValueError(f"tdmpc2 learns from {key}, which the environment does not give: see agent.pixels")
        self.observations = (key, "task") if pixels and "task" in keys else (key,)
        shape = observation_spec[key].shape
        if not pixels:
            return StateEncoder(shape[-1], width, self.latent_size, simnorm)
        tasks = observation_spec["task"].shape[-1] if "task" in keys else 0
        return PixelEncoder(shape, tasks, self.latent_size, simnorm)

    def encode(self, observed: TensorDictBase) -> Tensor:
        encoded: Tensor = self.encoder(*(observed[key] for key in self.observations))
        return encoded

    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        following: Tensor = self.predictor(torch.cat((latent, action), -1))
        return following

    def reward(self, latent: Tensor, action: Tensor) -> Tensor:
        logits = self.reward_head(torch.cat((latent, action), -1))
        return symexp(logits.softmax(-1) @ self.bins).unsqueeze(-1)

    def continue_probability(self, latent: Tensor) -> Tensor:
        if self.continue_head is None:
            return super().continue_probability(latent)
        return torch.sigmoid(self.continue_head(latent))

    def learn(self, segments: TensorDictBase, weight: Tensor) -> UnrolledLoss:
        seen = self._augmented(segments.select(*self.observations))
        first = self.encode(seen[:, 0])
        with torch.no_grad():
            observed = self.encode(seen[:, 1:])
        latents, actions = [first], segments["action"][:, :-1]
        for action in actions.unbind(1):
            latents.append(self.advance(latents[-1], action))
        latent = torch.stack(latents, 1)  # [B, H + 1, D]
        consistency = (weight * (latent[:, 1:] - observed).square().mean(-1)).mean()
        logits = self.reward_head(torch.cat((latent[:, :-1], actions), -1))  # [B, H, bins]
        error = two_hot_cross_entropy(logits, symlog(segments["next", "reward"][:, :-1]), self.bins)
        reward = (weight * error).mean()
        loss = self.consistency * consistency + self.reward_weight * reward
        metrics = {"consistency_loss": consistency.detach(), "reward_loss": reward.detach()}
        if self.continue_head is not None:
            continues = (~segments["next", "terminated"][:, :-1]).float()
            error = F.binary_cross_entropy_with_logits(self.continue_head(latent[:, 1:]), continues, reduction="none")
            ending = (weight * error.squeeze(-1)).mean()
            loss, metrics["continue_loss"] = loss + ending, ending.detach()
        return UnrolledLoss(loss, metrics, latent, observed)

    def _augmented(self, observed: TensorDictBase) -> TensorDictBase:
        """Shift each frame of observations [B, H + 1] independently at random."""
        if "frames" in self.observations and self.shift_pad:
            shifted = random_shift(observed["frames"].flatten(0, 1), self.shift_pad)
            observed["frames"] = shifted.unflatten(0, observed.batch_size)
        return observed
