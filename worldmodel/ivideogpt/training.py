"""Training: the parts that each update trains, optimisers, and one gradient step with warm-up and clipping."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from worldmodel.ranges import Count, Frames, Norm, Share, Weight

FUSED_ON_GPU = (torch.optim.Adam, torch.optim.SGD)  # AdamW is an Adam


@dataclass(frozen=True)
class TrainingPlan:
    """The parts that each update trains, and the weights of the losses.

    The first `tokenizer_updates` updates train the tokenizer alone. After that each update trains the transformer, and
    one in `tokenizer_every` also trains the tokenizer, with frozen codebooks, as published.

    Args:
        tokenizer_updates: Number of first updates, which train the tokenizer alone.
        tokenizer_every: Transformer updates for each later tokenizer update. 0: no later tokenizer updates.
        tokenizer_last: Transformer updates after which the tokenizer is frozen. None: never.
        tokenizer_frames: Future frames of each segment in a tokenizer update, drawn at random. None: all.
        warmup_updates: Updates over which the learning rate of each part rises linearly.
        clip_norm: Maximum norm of the gradient of each part.
        token_noise: Share of the dynamics tokens that are random in the transformer's input in training. It then
            relies less on copying, and is robust to its own errors in rollouts.
        reward_weight: Weight of the reward loss. The cross-entropy of the tokens has weight 1.
        state_weight: Weight of the loss of the robot's state, where the transformer has proprioception.
        perceptual: Perceptual loss of the tokenizer, from (prediction, target) [M, 3, R, R] in [0, 1] to a 0-d loss.
            None: no perceptual loss.
    """

    tokenizer_updates: Count
    tokenizer_every: Count
    tokenizer_last: Count | None = None
    tokenizer_frames: Frames | None = None
    warmup_updates: Count = 0
    clip_norm: Norm = 1.0
    token_noise: Share = 0.0
    reward_weight: Weight = 1.0
    state_weight: Weight = 1.0
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None

    def trains_tokenizer(self, updates: int) -> bool:
        """Whether update number `updates`, counted from 0, trains the tokenizer."""
        done = updates - self.tokenizer_updates
        if done >= 0 and self.tokenizer_last is not None and done >= self.tokenizer_last:
            return False
        return done < 0 or (self.tokenizer_every > 0 and (done + 1) % self.tokenizer_every == 0)

    def changes_codes(self, updates: int) -> bool:
        """Whether update number `updates` or a later one may change the tokens of a frame."""
        done = updates - self.tokenizer_updates
        trains = self.tokenizer_last is None or done < self.tokenizer_last
        return done < 0 or (self.tokenizer_every > 0 and trains)

    def check(self, warmup: int) -> None:
        """Raise ValueError if a tokenizer with random weights would be trained with codebooks that never learn.

        Args:
            warmup: Updates before its codebooks are seeded. 0: they learn from the first update on.
        """
        trained = self.tokenizer_updates > 0 or (self.tokenizer_every > 0 and self.tokenizer_last != 0)
        if trained and self.tokenizer_updates <= warmup:
            raise ValueError(
                f"training.tokenizer_updates ({self.tokenizer_updates}) must be more than "
                f"tokenizer.codebooks.moving_average.warmup ({warmup}): the codebooks are frozen after these updates "
                "and would never learn from data"
            )

    def kinds_of_updates(self, first: int, updates: int) -> dict[int, int]:
        """Count the updates that train the same parts: the tokenizer, the transformer, or both.

        Args:
            first: Number of the first update.
            updates: Number of updates.

        Returns:
            Number of the first update of each kind -> count of that kind.
        """
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for number in range(first, first + updates):
            kind = (number >= self.tokenizer_updates, self.trains_tokenizer(number))
            kinds.setdefault(kind, [number, 0])[1] += 1
        return {number: count for number, count in kinds.values()}  # noqa: C416 - lists of two are no items to mypy


@dataclass(frozen=True)
class Optimizers:
    """Factories of the optimisers of the model's parts.

    Args:
        tokenizer: Called with the parameters of the tokenizer.
        transformer: Called with two groups of parameters: those with weight decay and those without.
        reward_network: Called as `transformer`. None: there is no reward network.

    Raises:
        ValueError: There is a reward network but no optimiser for it.
    """

    tokenizer: Callable[..., torch.optim.Optimizer]
    transformer: Callable[..., torch.optim.Optimizer]
    reward_network: Callable[..., torch.optim.Optimizer] | None = None

    def make(
        self, tokenizer: nn.Module, transformer: nn.Module, reward_network: nn.Module | None = None
    ) -> dict[str, torch.optim.Optimizer]:
        """Make the optimisers, by name."""
        made = {
            "tokenizer": self.tokenizer(tokenizer.parameters()),
            "transformer": self.transformer(decay_groups(transformer)),
        }
        if reward_network is not None:
            if self.reward_network is None:
                raise ValueError("a reward_network needs optimizers.reward_network")
            made["reward_network"] = self.reward_network(decay_groups(reward_network))
        for optimizer in made.values():
            optimizer.register_step_pre_hook(fuse_on_gpu)
        return made


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put `module` in train or eval mode inside the context, and restore its mode afterwards."""
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: matrices with the optimiser's weight decay; biases, norms and embeddings without."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in module.parameters() if p.dim() > 1 and id(p) not in embeddings]
    others = [p for p in module.parameters() if p.dim() <= 1 or id(p) in embeddings]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def fuse_on_gpu(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Switch Adam or SGD to its fused kernel if its weights are on a GPU. A hook before each step.

    A checkpoint does not hold this choice, so a resumed run makes it again. Not on a CPU, where the fused kernel rounds
    differently.
    """
    if not isinstance(optimizer, FUSED_ON_GPU):
        return
    for group in optimizer.param_groups:
        chosen = group["fused"] is not None or group["foreach"]
        if chosen or not all(parameter.is_cuda for parameter in group["params"]):
            continue
        group["fused"] = True
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            if "step" in moments:  # Other kernels count on the CPU, and so does a checkpoint.
                moments["step"] = moments["step"].to(parameter.device)


def gradient_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, *, done: int, warmup: int, clip_norm: float, name: str
) -> Tensor:
    """Take one step: backward pass, clipping, and a learning rate that rises linearly during the warm-up.

    Args:
        optimizer: Optimiser of the parameters.
        loss: The loss, 0-d.
        done: Steps taken before this one.
        warmup: Steps over which the learning rate rises.
        clip_norm: Maximum norm of the gradient.
        name: Name of the trained part, for the error message.

    Returns:
        Norm of the gradient before clipping, 0-d.

    Raises:
        FloatingPointError: The loss or the gradient is not finite. The optimiser takes no step.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    if not torch.isfinite(norm + loss.detach()):
        optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(
            f"the {name}'s loss is {float(loss.detach()):.3g} with gradient norm {float(norm):.3g}: lower its learning "
            "rate, or look for values that are not finite in the batch"
        )
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * min(1.0, (done + 1) / max(warmup, 1))
    optimizer.step()
    return norm


def train_part(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    batch: TensorDictBase,
    *,
    done: int,
    name: str,
) -> dict[str, Tensor]:
    """Take one gradient step on a part of the model.

    Args:
        objective: Returns the metrics of a batch; `loss` is minimised.
        optimizer: As in `gradient_step`.
        plan: Warm-up and clipping.
        batch: [B, T] as for `IVideoGPT.update`.
        done: As in `gradient_step`.
        name: As in `gradient_step`.

    Returns:
        Metrics by name, detached.
    """
    with mode(objective, True):
        metrics: dict[str, Tensor] = objective(batch)
    loss = metrics.pop("loss")
    norm = gradient_step(optimizer, loss, done=done, warmup=plan.warmup_updates, clip_norm=plan.clip_norm, name=name)
    return {**metrics, f"{name}_loss": loss.detach(), f"{name}_gradient_norm": norm}
