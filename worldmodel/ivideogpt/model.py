"""iVideoGPT as a world model: learn from sequences, imagine through a key/value cache.

B batch, T time, C real context frames, F = T - C future frames, H horizon, A action width, R resolution, L tokens.
Source: iVideoGPT (Wu et al., NeurIPS 2024, arXiv 2405.15223).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from worldmodel.base import Outcome, WorldModel
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.objectives import TokenizerObjective, TransformerObjective
from worldmodel.ivideogpt.official import load_parts, save_parts
from worldmodel.ivideogpt.precision import Precision, autocast
from worldmodel.ivideogpt.rollout.decoding import Sampling
from worldmodel.ivideogpt.rollout.rollout import Frame, ImaginedState, Rollouts
from worldmodel.ivideogpt.segments import SegmentReader
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import TrainingPlan, decay_groups, gradient_step, mode
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

if TYPE_CHECKING:
    from torchrl.data import Composite, TensorSpec


class IVideoGPT(WorldModel):
    """A compressive tokenizer and a transformer that is conditioned on actions and predicts rewards.

    Args:
        observation_spec: must hold ``pixels`` [3, R, R] of the tokenizer's resolution, and ``state`` where the
            transformer has proprioception. action_spec: [A].
        tokenizer: makes one when called. transformer: called with (layout, action_dim).
        tokenizer_optimizer, transformer_optimizer: called with parameters (or groups of them).
        training: what each update trains. sampling: how codes are chosen while imagining.
        segment_length: T of the longest training sequence. horizon: frames that may be imagined from one start; None
            means T - C. Beyond that the rollout's newest frames become its context, again and again.
        precision: "float32", "bfloat16" or "auto", of the large matrix products (weights stay float32); see Precision.
        perceptual: (prediction, target) [M, 3, R, R] in [0, 1] to a 0-d loss for the tokenizer, or None.
        ensemble: transformers that learn side by side and imagine together; see decoding.imagine.
        uncertainty: whether imagined steps say how unsure the model is: ``token_entropy``; ``reward_std`` where there
            are several reward heads or transformers; ``disagreement`` where there are several transformers.
        action_conditioned: False for a model that only watches.
        goal_conditioned: a goal frame stands before the context; it takes one of the tokenizer's context places.
        pretrained: a folder, or an id on the Hugging Face hub, of published or own weights to start from; sizes then
            come from there and `tokenizer` and `transformer` are not called (see official.load_parts); the tokenizer is
            not trained alone at first, because its tokens have their meaning already.
        dropout_in_imagination: a published defect for study: leave dropout on while imagining.
    """

    updates: Tensor
    _imagined_after = -1  # updates

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        tokenizer: Callable[[], CompressiveTokenizer],
        transformer: Callable[[TokenLayout, int | None], VideoTransformer],
        tokenizer_optimizer: Callable[..., torch.optim.Optimizer],
        transformer_optimizer: Callable[..., torch.optim.Optimizer],
        training: TrainingPlan,
        sampling: Sampling,
        segment_length: int,
        horizon: int | None = None,
        precision: str = "float32",
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        ensemble: int = 1,
        uncertainty: bool = False,
        action_conditioned: bool = True,
        goal_conditioned: bool = False,
        pretrained: str | None = None,
        dropout_in_imagination: bool = False,
    ) -> None:
        super().__init__()
        if ensemble < 1:
            raise ValueError("ensemble must be 1 transformer or more")
        action_dim = action_spec.shape[-1] if action_conditioned else None
        if pretrained is None:
            self.tokenizer = tokenizer()
            members = [transformer(self.tokenizer.layout, action_dim) for _ in range(ensemble)]
        else:
            asked = {**getattr(tokenizer, "keywords", {}), **getattr(transformer, "keywords", {})}
            self.tokenizer, members = load_parts(pretrained, action_dim, ensemble, goal_conditioned, asked)
        self.transformer, self.others = members[0], nn.ModuleList(members[1:])
        self.plan, self.precision, self.segment_length = training, Precision(precision), segment_length
        self.context_length = self.tokenizer.context_length - goal_conditioned
        self.resolution, self.action_dim = self.tokenizer.resolution, action_dim or 0
        futures = segment_length - self.tokenizer.context_length
        self.max_horizon = futures if horizon is None else horizon
        self.goal_conditioned, self.predicts_reward = goal_conditioned, self.transformer.reward_linear is not None
        self._check_sizes(observation_spec)
        self._check_warmup(seeded=pretrained is not None)
        reader = self._reader(action_dim, goal_conditioned)
        self._perceptual = (perceptual,)  # in a tuple, so that its weights are no part of this model's
        self.register_buffer("updates", torch.tensor(0 if pretrained is None else training.tokenizer_updates))
        self._optimizers = {
            "tokenizer": tokenizer_optimizer(self.tokenizer.parameters()),
            "transformer": transformer_optimizer(decay_groups(nn.ModuleList(members))),
        }
        parts = (self.tokenizer, members, reader)
        switches = (self.precision, uncertainty, dropout_in_imagination)
        self.rollouts = Rollouts(*parts, sampling, futures, self.max_horizon, *switches)
        # a fused optimiser does not count its writes to the weights, so every step says that it was taken
        self._optimizers["transformer"].register_step_post_hook(lambda *_: self.rollouts.forget())
        self.measures = self._measures() if uncertainty else ()
        # in a dict that torch does not look into: their weights are those of the parts
        self.objectives: dict[str, nn.Module] = {
            "tokenizer": TokenizerObjective(self.tokenizer, reader, training, self.precision, perceptual),
            "transformer": TransformerObjective(*parts, training, self.precision),
        }

    @property
    def dtype(self) -> torch.dtype:
        """Type of the large matrix products on the device where the model is."""
        return self.precision.dtype(self.updates.device)

    @property
    def layout(self) -> TokenLayout:
        """Order and numbering of a segment's tokens."""
        return self.transformer.layout

    def _reader(self, action_dim: int | None, goal: bool) -> SegmentReader:
        robot = self.transformer.proprioception
        return SegmentReader(
            self.tokenizer.resolution,
            self.context_length,
            self.segment_length - goal,
            action_dim,
            proprioception=0 if robot is None else robot.size,
            goal=goal,
            rewards_off_by_one=self.plan.rewards_off_by_one,
        )

    def _measures(self) -> tuple[str, ...]:
        members, heads = 1 + len(self.others), self.transformer.reward_linear
        several = heads is not None and heads.out_features * members > 1
        return ("token_entropy", *["reward_std"] * several, *["disagreement"] * (members > 1))

    def _check_sizes(self, observation_spec: Composite) -> None:
        resolution, pixels = self.tokenizer.resolution, tuple(observation_spec["pixels"].shape)
        if pixels[-3:] != (3, resolution, resolution):
            raise ValueError(
                f"the environment's pixels are {list(pixels)} but the tokenizer is made for {resolution}x"
                f"{resolution}: set tokenizer.resolution={pixels[-1]}, or the environment's to {resolution}"
            )
        if self.context_length < 1:
            raise ValueError("goal_conditioned needs a tokenizer.context_length of 2 or more: the goal takes one place")
        context, futures = self.tokenizer.context_length, self.segment_length - self.tokenizer.context_length
        if futures < 1 or self.max_horizon < 1:
            raise ValueError(
                f"segment_length {self.segment_length} leaves no future frame after a context of {context}: make it at "
                f"least {context + 1}, and horizon ({self.max_horizon}) at least 1"
            )
        tokens, most = self.layout.prefix + self.layout.stride * futures, self.transformer.max_positions
        if tokens > most:
            raise ValueError(
                f"a segment of {self.segment_length} frames has {tokens} tokens, more than "
                f"transformer.max_positions={most}: raise that, or shorten segment_length"
            )
        robot = self.transformer.proprioception
        numbers = observation_spec["state"].shape[-1] if "state" in observation_spec.keys() else 0
        if robot is not None and numbers < robot.size:
            raise ValueError(f"transformer.proprioception={robot.size}, but the environment's `state` has {numbers}")

    def _check_warmup(self, *, seeded: bool) -> None:
        warmup = self.tokenizer.quantize.warmup
        if not seeded and 0 < self.plan.tokenizer_updates <= warmup:
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

    def get_extra_state(self) -> dict[str, str]:
        """The precision that the model computes in: a resumed run keeps it on any machine."""
        return {"precision": self.precision.name(self.updates.device)}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self.precision.resume(state["precision"])
        self.rollouts.forget()

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """As WorldModel.update; T may be anything from C + 1 to ``segment_length``."""
        updates = int(self.updates)
        metrics: dict[str, Tensor] = {}
        if updates >= self.plan.tokenizer_updates:
            metrics |= self._step("transformer", batch, updates - self.plan.tokenizer_updates)
        if self.plan.trains_tokenizer(updates):
            self.fix_codes(updates >= self.plan.tokenizer_updates)
            metrics |= self._step("tokenizer", batch, updates)
        self.updates += 1
        return metrics

    def start(self, context: TensorDictBase) -> ImaginedState:
        """As WorldModel.start; a goal-conditioned model needs ``goal``, one with proprioception ``state``."""
        updates = int(self.updates)
        if updates != self._imagined_after:  # weights may be shared with the process that trains them, versions are not
            self._imagined_after = updates
            self.rollouts.forget()
        return self.rollouts.start(context)

    def step(self, state: ImaginedState, action: Tensor | None) -> tuple[ImaginedState, TensorDict]:
        """As WorldModel.step; with proprioception there is ``state`` [B, P] too."""
        state, frame = self.rollouts.advance(state, action)
        state, pixels = self.rollouts.show(state, frame.tokens.unsqueeze(1))
        prediction = _beside_pixels(frame)
        prediction["pixels"] = pixels.squeeze(1)
        return state, prediction

    def fork(self, state: ImaginedState, n: int) -> ImaginedState:
        return self.rollouts.fork(state, n)

    def predict(self, context: TensorDictBase, actions: Tensor, samples: int = 1) -> TensorDict:
        """As WorldModel.predict; frames are decoded in one batch at the end (or wherever it is anchored anew)."""
        state = self.start(context)
        if samples > 1:
            state, actions = self.rollouts.fork(state, samples), actions.repeat_interleave(samples, 0)
        frames, pixels = self.rollouts.follow(state, actions, decode=actions.shape[1])
        return TensorDict.stack([_beside_pixels(frame) for frame in frames], 1).set("pixels", pixels)

    @torch.no_grad()
    def outcome(self, state: ImaginedState, actions: Tensor, last_frame: bool = False) -> Outcome:
        """As WorldModel.outcome: nothing is decoded but the last frame, and what the rollout is anchored anew on."""
        frames, pixels = self.rollouts.follow(state, actions, decode=int(last_frame))
        rewards = [frame.reward for frame in frames if frame.reward is not None]
        return Outcome(torch.cat(rewards, 1) if rewards else None, pixels[:, -1] if last_frame else None)

    @torch.no_grad()
    def reconstruct(self, context: TensorDictBase) -> Tensor:
        """As WorldModel.reconstruct: encoded, quantised and decoded."""
        frames = self._context_frames(context)
        with mode(self.tokenizer, False), autocast(frames, self.precision):
            codes, _ = self.tokenizer.encode_context(frames)
            decoded = self.tokenizer.context_features_for_decoder(codes, frames).frames.float()
        return decoded[:, -self.context_length :].clamp(0, 1).mul(255).round().to(torch.uint8)

    @torch.no_grad()
    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        """As WorldModel.codes: of the context (and the goal) [B, C, N] and of the frames after it [B, F, n]."""
        past, future = self._context_frames(batch[:, : self.context_length]), batch["pixels"][:, self.context_length :]
        with mode(self.tokenizer, False), autocast(past, self.precision):
            context, features = self.tokenizer.encode_context(past)
            dynamics = self.tokenizer.encode_dynamics(future.float() / 255, features)
        sizes = self.layout.context_codes, self.layout.dynamics_codes
        return {"context": (context, sizes[0]), "dynamics": (dynamics, sizes[1])}

    def _context_frames(self, context: TensorDictBase) -> Tensor:
        """The frames of the layout's context in [0, 1], the goal among them."""
        return self.rollouts.reader.context(context)[0].float() / 255

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights in the published layout, as ``pretrained`` and the loaders in official.py take them."""
        save_parts(folder, self.tokenizer, self.transformer, *self.others, goal=self.goal_conditioned)

    def fix_codes(self, fixed: bool) -> None:
        """Fix (or free) what gives tokens their meaning: the codebooks and, as planned, the encoders."""
        tokenizer = self.tokenizer
        for quantizer in (tokenizer.quantize, tokenizer.dynamics_quantize):
            quantizer.fixed = fixed
            quantizer.embedding.weight.requires_grad_(not fixed and not quantizer.moving_average)
        for encoder in (tokenizer.encoder, tokenizer.cond_encoder, tokenizer.quant_conv, tokenizer.quant_linear):
            encoder.requires_grad_(not fixed or self.plan.later_encoders)

    def _step(self, name: str, batch: TensorDictBase, done: int) -> dict[str, Tensor]:
        """One gradient step on one part; its metrics."""
        with mode(self.objectives[name], True):
            metrics = self.objectives[name](batch)
        loss = metrics.pop("loss")
        optimizer, plan = self._optimizers[name], self.plan
        norm = gradient_step(
            optimizer, loss, done=done, warmup=plan.warmup_updates, clip_norm=plan.clip_norm, name=name
        )
        return {**metrics, f"{name}_loss": loss.detach(), f"{name}_gradient_norm": norm}


def _beside_pixels(frame: Frame) -> TensorDict:
    """What a frame holds beside its pixels, [R]."""
    named = {"reward": frame.reward, "state": frame.robot, **frame.measures}
    known = {name: value for name, value in named.items() if value is not None}
    return TensorDict(known, batch_size=frame.tokens.shape[:1])
