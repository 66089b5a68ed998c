"""Training objectives of the tokenizer and of the transformer, for any training loop.

Dimensions: B batch, T frames, C context frames, F future frames, R resolution, M frames of a batch.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules.functional import symexp

from worldmodel.ivideogpt.precision import Precision, autocast
from worldmodel.ivideogpt.rewards import RewardNetwork, TokenRewardNetwork, TwoHotRewards
from worldmodel.ivideogpt.segments import Segment, SegmentReader
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import TrainingPlan, mode
from worldmodel.ivideogpt.transformer.losses import motion_weights, perplexity, psnr, sample_frames, weighted_error
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

Perceptual = Callable[[Tensor, Tensor], Tensor]  # (prediction, target) [M, 3, R, R] in [0, 1] to a 0-d loss


class TokenizerObjective(nn.Module):
    """The loss of the tokenizer on a batch. Its parameters are those of the tokenizer.

    Args:
        tokenizer: The tokenizer.
        reader: Reads batches.
        plan: Training plan. Its perceptual loss is no part of this module, so that its weights are not trained.
        precision: Precision of the large matrix products.
    """

    def __init__(
        self, tokenizer: CompressiveTokenizer, reader: SegmentReader, plan: TrainingPlan, precision: Precision
    ) -> None:
        super().__init__()
        self.tokenizer, self.reader, self.plan, self.precision = tokenizer, reader, plan, precision

    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            batch: [B, T] with `pixels`.

        Returns:
            The loss under "loss", and detached metrics; all 0-d.
        """
        segment, plan = self.reader(batch), self.plan
        with autocast(segment.pixels, self.precision):
            metrics = tokenizer_losses(self.tokenizer, segment.frames, plan.tokenizer_frames, plan.perceptual)
        loss = metrics.pop("loss")
        return {"loss": loss, **{f"tokenizer_{name}": value for name, value in metrics.items()}}


class TransformerObjective(nn.Module):
    """The loss of the transformer on a batch. Its parameters are those of the transformer.

    The tokenizer makes the tokens, in eval mode and without gradients. It is no part of this module.

    Args:
        tokenizer: The tokenizer.
        transformer: The transformer.
        reader: Reads batches.
        plan: Training plan.
        precision: Precision of the large matrix products.
        full_vocabulary: Compute the published cross-entropy, over the whole vocabulary. See PublishedDefects.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        reader: SegmentReader,
        plan: TrainingPlan,
        precision: Precision,
        full_vocabulary: bool = False,
    ) -> None:
        super().__init__()
        self.transformer, self.reader, self.plan = transformer, reader, plan
        self.precision, self.full_vocabulary = precision, full_vocabulary
        self._tokenizer = (tokenizer,)

    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            batch: [B, T] with `pixels`; `action`, rewards and `state` where the transformer reads or predicts them.

        Returns:
            The loss under "loss", and detached metrics; all 0-d.
        """
        segment = self.reader(batch)
        with autocast(segment.pixels, self.precision):
            with mode(self._tokenizer[0], False):
                tokens = self._tokenizer[0].tokens(segment.frames)
            return self._losses(tokens, segment)

    def _losses(self, tokens: Tensor, segment: Segment) -> dict[str, Tensor]:
        plan, noise = self.plan, self.plan.token_noise if self.training else 0.0
        read = (tokens, segment.actions, segment.rewards, self.full_vocabulary, segment.states, noise)
        losses = self.transformer.losses(*read)
        loss = losses.code_loss + plan.reward_weight * losses.reward_loss + plan.state_weight * losses.state_loss
        metrics = {"loss": loss, "code_loss": losses.code_loss.detach(), "token_accuracy": losses.hits.float().mean()}
        if losses.reward is not None and segment.rewards is not None:
            metrics["reward_loss"] = losses.reward_loss.detach()
            metrics["reward_error"] = (symexp(losses.reward.detach()) - segment.rewards).abs().mean()
        if segment.states is not None:
            metrics["state_loss"] = losses.state_loss.detach()
        return metrics


class RewardObjective(nn.Module):
    """The loss of the reward network on a batch, real frames alone. Its parameters are those of the network.

    Args:
        network: The network.
        tokenizer: The tokenizer; no part of this module.
        reader: Reads batches.
        precision: Precision of the large matrix products.
    """

    def __init__(
        self,
        network: TwoHotRewards,
        tokenizer: CompressiveTokenizer,
        reader: SegmentReader,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.network, self.reader, self.precision = network, reader, precision
        self._tokenizer = (tokenizer,)

    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            batch: [B, T] with `pixels`, rewards, and `action` where the network reads it.

        Returns:
            The loss under "loss", and detached metrics; all 0-d.
        """
        segment = self.reader(batch)
        if segment.rewards is None:
            raise ValueError("the reward network learns from rewards: the data hold none")
        with autocast(segment.pixels, self.precision):
            if isinstance(self.network, TokenRewardNetwork):
                logits, rewards, terminated = self._of_tokens(self.network, segment)
            else:
                assert isinstance(self.network, RewardNetwork)
                rewards, terminated = segment.rewards, segment.terminated
                # With `initial`, the segment has the episode's initial frame in place of the one before the first step.
                pixels = batch["pixels"] if self.reader.initial else segment.pixels
                pixels = pixels[:, -rewards.shape[1] - 1 :]
                logits = self.network.logits(pixels, segment.actions, learning=True)
        loss = self.network.loss(logits, rewards, terminated)
        error = (self.network.read(logits.detach()) - rewards).abs().mean()
        return {"loss": loss, "read_reward_error": error}

    def _of_tokens(self, network: TokenRewardNetwork, segment: Segment) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, rewards and terminations of the steps between future frames."""
        tokenizer = self._tokenizer[0]
        with mode(tokenizer, False):
            _, codes = tokenizer.layout.split(tokenizer.tokens(segment.frames))
        latents, actions, rewards = tokenizer.dynamics_quantize.vectors(codes), segment.actions, segment.rewards
        assert rewards is not None
        between, terminated = (None if x is None else x[:, 1:] for x in (actions, segment.terminated))
        return network.logits(latents[:, :-1], latents[:, 1:], between), rewards[:, 1:], terminated


def tokenizer_losses(
    tokenizer: CompressiveTokenizer,
    frames: Tensor,
    samples: int | None = None,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor]:
    """Losses of the tokenizer.

    Args:
        tokenizer: The tokenizer.
        frames: [B, T, 3, R, R] float in [0, 1], T > C.
        samples: Future frames to train on, drawn at random for each row. None: all.
        perceptual: Perceptual loss, as in TrainingPlan.

    Returns:
        The sum of the losses under "loss"; detached, its parts and metrics; all 0-d.
    """
    length, squared = tokenizer.context_length, tokenizer.loss.squared_weight
    if samples is not None:
        frames = torch.cat([frames[:, :length], sample_frames(frames[:, length:], samples)], 1)
    tokenizer.watch_background(frames)
    output, context, dynamics = tokenizer(frames)
    past_weights, weights = _pixel_weights(tokenizer, frames)
    parts = {
        "context_error": weighted_error(output[:, :length], frames[:, :length], past_weights, squared),
        "future_error": weighted_error(output[:, length:], frames[:, length:], weights, squared),
        "context_commitment": context.loss,
        "dynamics_commitment": dynamics.loss,
    }
    if perceptual is not None:
        # Context and future frames have equal weight, as published, however many of each there are.
        halves = zip(output.tensor_split([length], 1), frames.tensor_split([length], 1), strict=True)
        distances = [perceptual(ours.flatten(0, 1), real.flatten(0, 1)) for ours, real in halves]
        parts["perceptual"] = tokenizer.loss.perceptual_weight * torch.stack(distances).sum()
    loss = torch.stack(list(parts.values())).sum()
    with torch.no_grad():
        still = frames[:, length - 1 : length]
        moving = (frames[:, length:] - still).abs().mean(-3, keepdim=True) > tokenizer.loss.motion_scale
        metrics = {
            "context_psnr": psnr(output[:, :length], frames[:, :length]),
            "future_psnr": psnr(output[:, length:], frames[:, length:]),
            "moving_psnr": psnr(output[:, length:], frames[:, length:], moving),
            "context_perplexity": perplexity(context.codes, tokenizer.context_codes),
            "dynamics_perplexity": perplexity(dynamics.codes, tokenizer.dynamics_codes),
        }
    return {"loss": loss, **{name: value.detach() for name, value in parts.items()}, **metrics}


def _pixel_weights(tokenizer: CompressiveTokenizer, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the pixels of context frames and of future frames, each [B, ., 1, R, R].

    Without a background the mean of each is 1. With one it is near 1: weights against the background have mean 1 over
    all frames together, and future frames take the average of these and of the weights against the last context frame.
    """
    length, options = tokenizer.context_length, (tokenizer.loss.motion_weight, tokenizer.loss.motion_scale)
    past, future = frames[:, :length], frames[:, length:]
    moved = motion_weights(future, past[:, -1:], *options)
    if not tokenizer.background_batches:
        return torch.ones_like(moved[:1, :1]), moved
    there = motion_weights(frames, tokenizer.background, *options)
    return there[:, :length], 0.5 * (moved + there[:, length:])
