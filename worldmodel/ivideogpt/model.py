"""iVideoGPT as a world model: learn from sequences, imagine through a key/value cache.

B batch, T time, C context frames, F = T - C future frames, H horizon, A action width, R resolution, L tokens.
Source: iVideoGPT (Wu et al., NeurIPS 2024, arXiv 2405.15223).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from worldmodel.base import WorldModel
from worldmodel.ivideogpt.decoding import Sampling
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.rollout import ImaginedState, Rollouts
from worldmodel.ivideogpt.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import TrainingPlan, decay_groups, gradient_step, mode
from worldmodel.ivideogpt.transformer import VideoTransformer, symexp

if TYPE_CHECKING:
    from torchrl.data import Composite, TensorSpec

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class IVideoGPT(WorldModel):
    """A compressive tokenizer and an action-conditioned transformer with a reward head.

    Args:
        observation_spec: must hold ``pixels`` [3, R, R] of the tokenizer's resolution. action_spec: [A].
        tokenizer: built. transformer: called with (layout, action_dim).
        tokenizer_optimizer, transformer_optimizer: called with parameters (or groups of them).
        training: what each update trains. sampling: how codes are chosen while imagining.
        segment_length: T of the longest training sequence; ``max_horizon`` = T - C.
        precision: "float32" or "bfloat16", of the large matrix products (weights stay float32).
        perceptual: (prediction, target) [M, 3, R, R] in [0, 1] to a 0-d loss for the tokenizer, or None.
        dropout_in_imagination: a published defect for study: leave dropout on while imagining.
    """

    updates: Tensor

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        tokenizer: CompressiveTokenizer,
        transformer: Callable[[TokenLayout, int], VideoTransformer],
        tokenizer_optimizer: Callable[..., torch.optim.Optimizer],
        transformer_optimizer: Callable[..., torch.optim.Optimizer],
        training: TrainingPlan,
        sampling: Sampling,
        segment_length: int,
        precision: str = "float32",
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        dropout_in_imagination: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer, self.layout = tokenizer, TokenLayout.of(tokenizer)
        self.action_dim, self.segment_length = action_spec.shape[-1], segment_length
        self.context_length = tokenizer.context_length
        self.max_horizon = segment_length - tokenizer.context_length
        self.transformer = transformer(self.layout, self.action_dim)
        self.plan, self.dtype = training, precision_dtype(precision)
        self._check_sizes(tuple(observation_spec["pixels"].shape))
        self._perceptual = (perceptual,)  # in a tuple, so that its weights are no part of this model's
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._optimizers = {
            "tokenizer": tokenizer_optimizer(tokenizer.parameters()),
            "transformer": transformer_optimizer(decay_groups(self.transformer)),
        }
        self.rollouts = Rollouts(
            tokenizer,
            self.transformer,
            sampling,
            max_horizon=self.max_horizon,
            dtype=self.dtype,
            dropout=dropout_in_imagination,
        )

    def _check_sizes(self, pixels: tuple[int, ...]) -> None:
        resolution = self.tokenizer.resolution
        if pixels[-3:] != (3, resolution, resolution):
            raise ValueError(
                f"the environment's pixels are {list(pixels)} but the tokenizer is made for {resolution}x"
                f"{resolution}: set tokenizer.resolution={pixels[-1]}, or the environment's to {resolution}"
            )
        if self.max_horizon < 1:
            raise ValueError(
                f"segment_length {self.segment_length} leaves no future frame after a context of "
                f"{self.context_length}: make it at least {self.context_length + 1}"
            )
        tokens, most = self.layout.length(self.segment_length), self.transformer.max_positions
        if tokens > most:
            raise ValueError(
                f"a segment of {self.segment_length} frames has {tokens} tokens, more than "
                f"transformer.max_positions={most}: raise that, or shorten segment_length"
            )

        warmup = self.tokenizer.quantize.warmup
        if 0 < self.plan.tokenizer_updates <= warmup:
            raise ValueError(
                f"training.tokenizer_updates ({self.plan.tokenizer_updates}) must be more than quantizer.warmup "
                f"({warmup}): the codebooks are frozen after them and would never be seeded from data"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        perceptual = self._perceptual[0]
        if isinstance(perceptual, nn.Module):
            perceptual._apply(fn)  # no part of this model's weights, but it follows them to their device
        return super()._apply(fn, recurse)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimizers

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """As WorldModel.update; T may be anything from C + 1 to ``segment_length``."""
        pixels, actions, rewards = self._segments(batch)
        frames, updates = pixels.float() / 255, int(self.updates)
        metrics: dict[str, Tensor] = {}
        if updates >= self.plan.tokenizer_updates:
            metrics |= self._update_transformer(frames, actions, rewards, updates)
        if self.plan.trains_tokenizer(updates):
            metrics |= self._update_tokenizer(frames, updates)
        self.updates += 1
        return metrics

    def start(self, context: TensorDictBase) -> ImaginedState:
        return self.rollouts.start(context["pixels"])

    def step(self, state: ImaginedState, action: Tensor) -> tuple[ImaginedState, TensorDict]:
        state, tokens, reward = self.rollouts.advance(state, action)
        pixels = self.rollouts.pixels(state, tokens.unsqueeze(1)).squeeze(1)
        rewards = {} if reward is None else {"reward": reward}
        return state, TensorDict({"pixels": pixels, **rewards}, batch_size=action.shape[:1])

    def fork(self, state: ImaginedState, n: int) -> ImaginedState:
        return self.rollouts.fork(state, n)

    def predict(self, context: Tensor, actions: Tensor, samples: int = 1) -> tuple[Tensor, Tensor | None]:
        """As WorldModel.predict; each context is encoded once, and all frames are decoded in one batch at the end."""
        state = self.rollouts.start(context)
        if samples > 1:
            state, actions = self.rollouts.fork(state, samples), actions.repeat_interleave(samples, 0)
        tokens, rewards = [], []
        for action in actions.unbind(1):
            state, token, reward = self.rollouts.advance(state, action)
            tokens.append(token)
            rewards.append(reward)
        pixels = self.rollouts.pixels(state, torch.stack(tokens, 1))
        known = [reward for reward in rewards if reward is not None]
        return pixels, torch.stack(known, 1) if known else None

    @torch.no_grad()
    def reconstruct(self, context: Tensor) -> Tensor:
        """As WorldModel.reconstruct: encoded, quantised and decoded."""
        frames = context.float() / 255
        with mode(self.tokenizer, False), self._autocast():
            codes, _ = self.tokenizer.encode_context(frames)
            decoded = self.tokenizer.context_features_for_decoder(codes, frames).frames.float()
        return decoded.clamp(0, 1).mul(255).round().to(torch.uint8)

    def codes(self, pixels: Tensor) -> dict[str, tuple[Tensor, int]]:
        """As WorldModel.codes: of the context [B, C, N] and of the frames after it [B, F, n]."""
        context, dynamics = self.layout.split(self._tokens(pixels.float() / 255))
        return {
            "context": (context, self.layout.context_codes),
            "dynamics": (dynamics, self.layout.dynamics_codes),
        }

    def _segments(self, batch: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Checked: pixels [B, T, 3, R, R], and of the F future frames the actions leading there and rewards."""
        pixels, side = batch["pixels"], self.tokenizer.resolution
        if pixels.dtype != torch.uint8 or pixels.dim() != 5 or tuple(pixels.shape[2:]) != (3, side, side):
            raise ValueError(
                f"a batch needs pixels uint8 [B, T, 3, {side}, {side}], not {pixels.dtype} {list(pixels.shape)}"
            )
        frames = pixels.shape[1]
        if not self.context_length < frames <= self.segment_length:
            raise ValueError(
                f"sequences of {frames} frames: this model trains on {self.context_length + 1} to "
                f"{self.segment_length} (segment_length)"
            )
        width = batch["action"].shape[-1]
        if width != self.action_dim:
            raise ValueError(f"actions have width {width}, the model was built for {self.action_dim}")
        leading = slice(self.context_length - 1, frames - 1)
        earned = slice(self.context_length, frames) if self.plan.rewards_off_by_one else leading
        return pixels, batch["action"][:, leading].float(), batch["next", "reward"][:, earned].float()

    def _update_tokenizer(self, frames: Tensor, updates: int) -> dict[str, Tensor]:
        with mode(self.tokenizer, True), self._autocast():
            self._freeze_codes(updates >= self.plan.tokenizer_updates)
            metrics = self.tokenizer.losses(frames, self.plan.tokenizer_frames, self._perceptual[0])
        norm = self._step("tokenizer", metrics["loss"], updates)
        on = torch.full_like(norm, float(self._perceptual[0] is not None))
        metrics |= {"loss": metrics["loss"].detach(), "gradient_norm": norm, "perceptual_on": on}
        return {f"tokenizer_{name}": value for name, value in metrics.items()}

    def _freeze_codes(self, frozen: bool) -> None:
        """Fix (or free) what gives tokens their meaning: the codebooks and, as planned, the encoders."""
        tokenizer = self.tokenizer
        for quantizer in (tokenizer.quantize, tokenizer.dynamics_quantize):
            quantizer.train(not frozen)  # in eval mode codes neither move with their latents nor are revived
            quantizer.embedding.weight.requires_grad_(not frozen and not quantizer.moving_average)
        for encoder in (tokenizer.encoder, tokenizer.cond_encoder, tokenizer.quant_conv, tokenizer.quant_linear):
            encoder.requires_grad_(not frozen or self.plan.later_encoders)

    def _update_transformer(self, frames: Tensor, actions: Tensor, rewards: Tensor, updates: int) -> dict[str, Tensor]:
        tokens = self._tokens(frames)
        with mode(self.transformer, True), self._autocast():
            losses = self.transformer.losses(tokens, actions, rewards, self.plan.full_vocabulary_loss)
        loss = losses.code_loss + self.plan.reward_weight * losses.reward_loss
        norm = self._step("transformer", loss, updates - self.plan.tokenizer_updates)
        metrics = {
            "code_loss": losses.code_loss.detach(),
            "token_accuracy": losses.hits.float().mean(),
            "transformer_gradient_norm": norm,
        }
        if losses.reward is not None:
            metrics["reward_loss"] = losses.reward_loss.detach()
            metrics["reward_error"] = (symexp(losses.reward.detach()) - rewards).abs().mean()
        return metrics

    @torch.no_grad()
    def _tokens(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, R, R] in [0, 1] to tokens [B, L], by the tokenizer in eval mode."""
        with mode(self.tokenizer, False), self._autocast():
            context, features = self.tokenizer.encode_context(frames[:, : self.context_length])
            dynamics = self.tokenizer.encode_dynamics(frames[:, self.context_length :], features)
        return self.layout.join(context, dynamics)

    def _step(self, name: str, loss: Tensor, updates: int) -> Tensor:
        warmup, clip_norm = self.plan.warmup_updates, self.plan.clip_norm
        optimizer = self._optimizers[name]
        self.rollouts.forget()
        return gradient_step(optimizer, loss, done=updates, warmup=warmup, clip_norm=clip_norm, name=name)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.updates.device.type, self.dtype, enabled=self.dtype != torch.float32)


def precision_dtype(name: str) -> torch.dtype:
    """The type of that name; ValueError where it is none of PRECISIONS."""
    if name not in PRECISIONS:
        close = difflib.get_close_matches(name, PRECISIONS, 1, 0.0)[0]
        raise ValueError(f"precision {name!r} is unknown: did you mean {close!r}?")
    return PRECISIONS[name]
