"""Gradient steps: plan, warm-up, clipping, refusal of what is not finite, weight-decay groups, modes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingPlan:
    """What each update trains, and how.

    The first ``tokenizer_updates`` updates train the tokenizer alone. After that every update trains the
    transformer, and each ``tokenizer_every``-th also the tokenizer, its codebooks and (unless asked otherwise)
    its encoders frozen so that tokens keep their meaning.

    Attributes:
        tokenizer_updates: of the tokenizer alone, at first.
        tokenizer_every: transformer updates to a later tokenizer update; 0 for none.
        later_encoders: whether later tokenizer updates train the encoders too, as published, or the decoders
            alone. Codebooks that standardise latents need them fixed: with frozen statistics they diverge.
        tokenizer_frames: future frames of each segment that a tokenizer update looks at; None for all.
        warmup_updates: over which each part's learning rate rises to its full value.
        clip_norm: largest norm of a part's gradient.
        reward_weight: of the reward loss beside the tokens' cross-entropy.
        state_weight: of the loss of the robot's own state, where the model predicts it.
        full_vocabulary_loss: the published softmax, over context codes too; twice the memory for logits.
        rewards_off_by_one: a published defect for study: train on the reward of the transition after a
            frame's own.
    """

    tokenizer_updates: int
    tokenizer_every: int
    later_encoders: bool = False
    tokenizer_frames: int | None = None
    warmup_updates: int = 0
    clip_norm: float = 1.0
    reward_weight: float = 1.0
    state_weight: float = 1.0
    full_vocabulary_loss: bool = False
    rewards_off_by_one: bool = False

    def trains_tokenizer(self, updates: int) -> bool:
        """Whether update number ``updates``, counted from 0, trains the tokenizer."""
        done = updates - self.tokenizer_updates
        return done < 0 or (self.tokenizer_every > 0 and (done + 1) % self.tokenizer_every == 0)


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put ``module`` in train or eval mode, and back afterwards."""
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: the optimiser's weight decay for matrices, none for biases, norms and embeddings."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in module.parameters() if p.dim() > 1 and id(p) not in embeddings]
    others = [p for p in module.parameters() if p.dim() <= 1 or id(p) in embeddings]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def gradient_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, *, done: int, warmup: int, clip_norm: float, name: str
) -> Tensor:
    """Backward, clip, and step at the learning rate that a linear warm-up over ``warmup`` steps allows.

    Args:
        done: steps taken before this one.
        name: what is trained, for the error.

    Returns:
        The gradient's norm before clipping, 0-d.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; the weights are as before.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    if not torch.isfinite(norm + loss.detach()):
        optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(
            f"the {name}'s loss is {float(loss.detach()):.3g} with gradient norm {float(norm):.3g} at its update "
            f"{done}: lower its learning rate, or look for values that are not finite in the batch"
        )
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * min(1.0, (done + 1) / max(warmup, 1))
    optimizer.step()
    return norm
