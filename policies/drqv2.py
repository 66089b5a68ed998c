"""DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645): off-policy control from pixels with random shifts.

B batch, K frames stacked, R resolution, D encoder features, F trunk features, A action.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Composite, TensorSpec

from policies.base import gradient_step, require_finite
from policies.bc import imitation
from policies.frames_actor import FramesActor, NoiseSchedule, Squash, VectorEncoder, noisy
from policies.metrics import value_metrics
from policies.networks import ConvEncoder, TwinCritic, constant_weights, frames_encoder, soft_update
from policies.ranges import LearningRate, Padding, Pixels, PositiveCount, PositiveShare, Std, Width
from policies.specs import action_size, pixel_keys
from policies.value_base import ValuePolicy, value

SATURATED = 0.95  # magnitude of an action above which tanh has less than a tenth of its slope at 0


class DrQV2(ValuePolicy):
    """Twin critics and a deterministic actor on a shared encoder that only the critics' loss trains.

    Args:
        observation_spec: has `frames` uint8 [3K, R, R], and `task` [N] for several tasks. Not used with
            `embedding_size`.
        action_spec: bounded to [-1, 1], [A].
        embedding_size: D of `embedding` [D], a world model's embedding of frames, which is then read instead of frames,
            without shifts. None: frames are read.
        embedding_hidden: width of a hidden layer (linear, ReLU) between the embedding and the trunk. None: no such
            layer.
        encoder_channels: see `ConvEncoder`.
        encoder_strides: see `ConvEncoder`.
        kernel_size: see `ConvEncoder`.
        feature_size: width of the trunk between encoder and heads.
        hidden_size: width of the two hidden layers of each head.
        critic_layer_norm: whether the critics' heads have LayerNorm.
        squash: how the actor's outputs are bounded to [-1, 1]: by "tanh", as published, or clipped with
            "inverted_gradients", see `bounded`. In the first updates an untrained critic drives the outputs to large
            magnitudes, where tanh is flat, and the actor outputs one action in every state for thousands of updates.
        learning_rate: learning rate of Adam, for encoder, critics and actor.
        target_rate: Polyak coefficient tau of the target critics, in (0, 1].
        std_start: standard deviation of the exploration noise at the first env step.
        std_end: standard deviation from `std_env_steps` on; it decreases linearly in between.
        std_env_steps: env steps of the noise schedule, 1 or more.
        std_clip: bound of the noise inside updates (on next actions and on the actor's own).
        shift_pad: largest random shift, in pixels.
        precision: "float32", or "bfloat16" for autocast, which is faster only on hardware with bfloat16 kernels.
        cuda_graphs: see `Policy`.
    """

    target_critic: TwinCritic

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        embedding_size: Width | None = None,
        embedding_hidden: Width | None = None,
        encoder_channels: Sequence[Width] = (32, 32, 32, 32),
        encoder_strides: Sequence[Pixels] = (2, 1, 1, 1),
        kernel_size: Pixels = 3,
        feature_size: Width = 50,
        hidden_size: Width = 1024,
        critic_layer_norm: bool = False,
        squash: Squash = "tanh",
        learning_rate: LearningRate = 1e-4,
        target_rate: PositiveShare = 0.01,
        std_start: Std = 1.0,
        std_end: Std = 0.1,
        std_env_steps: PositiveCount = 200_000,
        std_clip: Std = 0.3,
        shift_pad: Padding = 4,
        precision: Literal["float32", "bfloat16"] = "float32",
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.cuda_graphs = cuda_graphs
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"drqv2: precision is float32 or bfloat16, not {precision}")
        if std_env_steps < 1:
            raise ValueError(f"drqv2: std_env_steps is {std_env_steps}; it must be 1 or more")
        if squash not in get_args(Squash):
            raise ValueError(f"drqv2: squash is tanh or inverted_gradients, not {squash}")
        self.embedding_size = embedding_size or 0
        keys: list[str] = ["embedding"]
        encoder: ConvEncoder | VectorEncoder = VectorEncoder(embedding_size or 0, embedding_hidden)
        if embedding_size is None:
            keys = pixel_keys(observation_spec)
            encoder = frames_encoder(observation_spec, "drqv2", encoder_channels, encoder_strides, kernel_size)
        actions = action_size(action_spec, "drqv2")
        sizes = {"feature_size": feature_size, "hidden_size": hidden_size}
        noise = NoiseSchedule(std_start, std_end, std_env_steps)
        self.actor: FramesActor = FramesActor(encoder, keys, actions, **sizes, noise=noise, squash=squash)
        self.critic = TwinCritic(encoder.out_features, actions, **sizes, layer_norm=critic_layer_norm)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_rate, self.std_clip, self.shift_pad = target_rate, std_clip, shift_pad
        self.lower_precision = precision == "bfloat16"
        groups = {
            "critic": [*encoder.parameters(), *self.critic.parameters()],
            "actor": list(self.actor.trained_parameters()),
        }
        self.optimizers = {
            name: torch.optim.Adam(parameters, lr=learning_rate, fused=True) for name, parameters in groups.items()
        }

    @contextmanager
    def limited_noise(self, std: float | None) -> Iterator[None]:
        self.actor.max_std = std
        try:
            yield
        finally:
            self.actor.max_std = None

    def set_env_steps(self, n: int) -> None:
        self.actor.env_steps.fill_(n)

    def values(self, observed: TensorDictBase, action: Tensor) -> Tensor:
        found: Tensor = self.critic(self.actor.encode(observed), action)
        return found.float().mean(0)

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        with self._autocast():
            features = self.actor.encode(batch, self.shift_pad)  # [B, D]
            with torch.no_grad():
                next_features = self.actor.encode(batch["next"], self.shift_pad)
                target = self.target(next_features, batch)  # [B, 1]
        metrics = self._update_critic(features, batch, target)
        metrics |= self._update_actor(features.detach(), batch)
        soft_update(self.target_critic, self.critic, self.target_rate)
        require_finite({name: metrics[name] for name in ("critic_loss", "actor_loss")})
        return metrics | {"std": self.actor.std(), "batch_reward": batch["next", "reward"].mean()}

    def clone(self, batch: TensorDictBase, weight: float = 1.0) -> dict[str, Tensor]:
        """Take one step of imitation for actor and encoder; the critics learn as in `update`, on detached features."""
        with self._autocast():
            features = self.actor.encode(batch, self.shift_pad)
            mean = self.actor.mean(features).float()
            with torch.no_grad():
                next_features = self.actor.encode(batch["next"], self.shift_pad)
                target = self.target(next_features, batch)
        loss = F.mse_loss(mean, batch["action"])
        metrics = self._update_critic(features.detach(), batch, target, imitation_loss=weight * loss)
        soft_update(self.target_critic, self.critic, self.target_rate)
        metrics["cloning_loss"] = loss.detach()
        require_finite({name: metrics[name] for name in ("cloning_loss", "critic_loss")})
        return metrics

    def calibrate(self, batch: TensorDictBase) -> dict[str, Tensor]:
        with torch.no_grad(), self._autocast():
            features, following = (self.actor.encode(part, self.shift_pad) for part in (batch, batch["next"]))
            target = self.target(following, batch)
        metrics = self._update_critic(features, batch, target)
        soft_update(self.target_critic, self.critic, self.target_rate)
        require_finite({"critic_loss": metrics["critic_loss"]})
        return metrics

    def target(self, next_features: Tensor, batch: TensorDictBase) -> Tensor:
        """Target of the critics, [B, 1]: n-step reward plus the discounted minimum of the target critics."""
        following = batch["next"]
        action = noisy(self.actor.mean(next_features), self.actor.std(), self.std_clip)
        worth = value(self.target_critic, next_features, action)
        return following["reward"] + batch["gamma"] * ~following["terminated"] * worth

    def _update_critic(
        self, features: Tensor, batch: TensorDictBase, target: Tensor, imitation_loss: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Take one step of critics and encoder on both squared errors, and of the actor on an `imitation_loss`."""
        with self._autocast():
            values = self.critic(features, batch["action"]).float()  # [2, B, 1]
        loss = 2.0 * F.mse_loss(values, target.expand_as(values))
        if imitation_loss is None:
            gradient_step(loss, [self.optimizers["critic"]])
        else:
            gradient_step(loss + imitation_loss, [self.optimizers["critic"], self.optimizers["actor"]])
        return {"critic_loss": loss.detach()} | value_metrics(values, target, batch)

    def _update_actor(self, features: Tensor, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one step of the actor's trunk and head on the critics' minimum, plus the imitation term."""
        with self._autocast(), constant_weights(self.critic):
            mean = self.actor.mean(features)
            worth = value(self.critic, features, noisy(mean, self.actor.std(), self.std_clip))
        loss = -worth.mean()
        if "cloning" in batch.keys():
            loss = loss + imitation(mean, batch, worth)
        gradient_step(loss, [self.optimizers["actor"]])
        return {"actor_loss": loss.detach(), "saturated": (mean.detach().abs() > SATURATED).float().mean()}

    def _autocast(self) -> AbstractContextManager[None]:
        # The cache is off, because weights cast under no_grad would be reused where gradients are needed.
        device = self.actor.env_steps.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.lower_precision, cache_enabled=False)
