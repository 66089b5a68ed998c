"""What training minimises: one objective for the tokenizer, one for the transformer, for any loop to take steps on.

Legend: B batch, T frames, C context frames, F future frames, R resolution, M frames of a batch.
"""

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from worldmodel.ivideogpt.precision import Precision, autocast
from worldmodel.ivideogpt.segments import Segment, SegmentReader
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import TrainingPlan, mode
from worldmodel.ivideogpt.transformer.heads import symexp
from worldmodel.ivideogpt.transformer.losses import motion_weights, perplexity, psnr, sample_frames, weighted_error
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

Perceptual = Callable[[Tensor, Tensor], Tensor]


class TokenizerObjective(nn.Module):
    """A batch's loss for the tokenizer, under "loss", and detached metrics; its parameters are the tokenizer's.

    Args:
        perceptual: (prediction, target) [M, 3, R, R] in [0, 1] -> a 0-d loss, or None.
        precision: of the large matrix products.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        reader: SegmentReader,
        plan: TrainingPlan,
        precision: Precision,
        perceptual: Perceptual | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.reader, self.plan, self.precision = tokenizer, reader, plan, precision
        self._perceptual = (perceptual,)  # in a tuple: its weights are not trained

    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Batch [B, T] with ``pixels`` -> "loss" and metrics, all 0-d."""
        segment, perceptual = self.reader(batch), self._perceptual[0]
        with autocast(segment.pixels, self.precision):
            metrics = tokenizer_losses(self.tokenizer, segment.frames, self.plan.tokenizer_frames, perceptual)
        loss = metrics.pop("loss")
        metrics["perceptual_on"] = torch.full_like(loss.detach(), float(perceptual is not None))
        return {"loss": loss, **{f"tokenizer_{name}": value for name, value in metrics.items()}}


class TransformerObjective(nn.Module):
    """A batch's loss for the transformers, under "loss", and detached metrics; its parameters are theirs.

    The tokenizer makes the tokens, in eval mode and without gradients; it is no part of this module. Several
    transformers learn side by side from their own first weights: their losses are added, other metrics averaged.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformers: Sequence[VideoTransformer],
        reader: SegmentReader,
        plan: TrainingPlan,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.transformers = nn.ModuleList(transformers)
        self.reader, self.plan, self.precision = reader, plan, precision
        self._tokenizer = (tokenizer,)

    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Batch [B, T] with ``pixels``, ``action`` and, for these heads, rewards and ``state`` -> as above."""
        segment = self.reader(batch)
        with autocast(segment.pixels, self.precision):
            with mode(self._tokenizer[0], False):
                tokens = self._tokenizer[0].tokenize(segment.frames)
            found = [self._losses(model, tokens, segment) for model in self.transformers]
        if len(found) == 1:
            return found[0]
        together = {name: torch.stack([metrics[name] for metrics in found]) for name in found[0]}
        return {name: values.sum() if name == "loss" else values.mean() for name, values in together.items()}

    def _losses(self, model: nn.Module, tokens: Tensor, segment: Segment) -> dict[str, Tensor]:
        assert isinstance(model, VideoTransformer)
        plan = self.plan
        losses = model.losses(tokens, segment.actions, segment.rewards, plan.full_vocabulary_loss, segment.states)
        loss = losses.code_loss + plan.reward_weight * losses.reward_loss + plan.state_weight * losses.state_loss
        metrics = {"loss": loss, "code_loss": losses.code_loss.detach(), "token_accuracy": losses.hits.float().mean()}
        if losses.reward is not None and segment.rewards is not None:
            metrics["reward_loss"] = losses.reward_loss.detach()
            predicted = symexp(losses.reward.detach().mean(-1, keepdim=True))
            metrics["reward_error"] = (predicted - segment.rewards).abs().mean()
        if segment.states is not None:
            metrics["state_loss"] = losses.state_loss.detach()
        return metrics


def tokenizer_losses(
    tokenizer: CompressiveTokenizer,
    frames: Tensor,
    samples: int | None = None,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor]:
    """The training loss under "loss" and, detached, its parts and what is worth watching; all 0-d.

    Args:
        frames: [B, T, 3, R, R] float in [0, 1], T > C.
        samples: future frames to train on, drawn at random for each row; None takes all.
        perceptual: (prediction, target) [M, 3, R, R] in [0, 1] -> a 0-d loss.
    """
    length, squared = tokenizer.context_length, tokenizer.squared_weight
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
        # context and future frames weigh alike, as published, however many of each there are
        halves = zip(output.tensor_split([length], 1), frames.tensor_split([length], 1), strict=True)
        distances = [perceptual(ours.flatten(0, 1), real.flatten(0, 1)) for ours, real in halves]
        parts["perceptual"] = tokenizer.perceptual_weight * torch.stack(distances).sum()
    loss = torch.stack(list(parts.values())).sum()
    with torch.no_grad():
        still = frames[:, length - 1 : length]
        moving = (frames[:, length:] - still).abs().mean(-3, keepdim=True) > tokenizer.motion_scale
        metrics = {
            "context_psnr": psnr(output[:, :length], frames[:, :length]),
            "future_psnr": psnr(output[:, length:], frames[:, length:]),
            "moving_psnr": psnr(output[:, length:], frames[:, length:], moving),
            "context_perplexity": perplexity(context.codes, tokenizer.context_codes),
            "dynamics_perplexity": perplexity(dynamics.codes, tokenizer.dynamics_codes),
        }
    return {"loss": loss, **{name: value.detach() for name, value in parts.items()}, **metrics}


def _pixel_weights(tokenizer: CompressiveTokenizer, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the pixels of context frames and of future frames, each [B, ., 1, R, R] of mean 1."""
    length, options = tokenizer.context_length, (tokenizer.motion_weight, tokenizer.motion_scale)
    past, future = frames[:, :length], frames[:, length:]
    moved = motion_weights(future, past[:, -1:], *options)
    if not tokenizer.background_batches:
        return torch.ones_like(moved[:1, :1]), moved
    there = motion_weights(frames, tokenizer.background, *options)
    return there[:, :length], 0.5 * (moved + there[:, length:])
