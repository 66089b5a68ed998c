"""Interfaces: `Policy`, an actor with an update rule, and `Planner`, which searches for actions.

Policies import no world model and no environment. Specs and sizes are passed in as arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, overload

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.nn.probabilistic import InteractionType, interaction_type
from torch import Tensor, nn
from torchrl.data import Composite

Metrics = dict[str, Tensor]  # by name, 0-d


class Policy(nn.Module, ABC):
    """Base class of all policies.

    Attributes:
        actor: reads observation keys (`actor.in_keys`), writes `action` float32 [*B, A] within the action
            spec. Explores unless torchrl's `exploration_type()` is DETERMINISTIC, MODE or MEAN.
        carried: spec of the recurrent state: keys that the actor writes under "next" and reads at the next step, with
            `is_init`. They are zero at the first step of an episode. None for an actor without memory. A key `latent`
            is stored in the replay, with the observation that it was computed from.
        embedding_size: width of the world model's `embedding` that the actor reads; 0 if it reads none.
        acts_on_cpu: whether a run on a GPU with one worker acts with a copy of the actor on the CPU, which takes less
            time than the kernel launches and copies of an action on a GPU.
        cuda_graphs: whether a GPU replays the updates as CUDA graphs; they must change all tensors in place.
        learns_from: kind of the batches of `update`: transitions, imagined rollouts, or segments of real steps.
        segment_rows: least number of rows of a segment that `update` can learn from.
        segment_history: number of rows that `update` needs before each segment, such as those of its first frame stack.
        replay_rows: rows of the segments of real steps that `update` gets beside rollouts; 0 for none.
        optimizers: by name; checkpointed beside `state_dict()`. Empty if nothing is learned.
    """

    actor: TensorDictModuleBase
    carried: Composite | None = None
    embedding_size: int = 0
    acts_on_cpu: bool = False
    cuda_graphs: bool = False
    learns_from: Literal["transitions", "rollouts", "segments"] = "transitions"
    segment_rows: int = 2
    segment_history: int = 0
    replay_rows: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @property
    def acting(self) -> TensorDictModuleBase:
        """The module that collection and imagination call: the actor, unless a subclass wraps it."""
        return self.actor

    @property
    def device(self) -> torch.device:
        """Device of the parameters; the CPU for a policy without any."""
        return next(self.parameters(), torch.empty(0)).device

    def recall(self, history: TensorDictBase) -> TensorDict | None:
        """Recurrent state (`carried`) at the last of real steps [B, T]; None: the actor starts from zeros.

        Args:
            history: `pixels` uint8 [B, T, 3, R, R], `action` [B, T, A] and, if known, `initial`, the first frame of
                the episode, in the shape of `pixels`.
        """
        return None

    def values(self, observed: TensorDictBase, action: Tensor) -> Tensor | None:
        """Q-values of actions [*B, A] in observed states [*B], in units of the discounted return: float32 [*B, 1].

        None for a policy without critics, or whose values include other terms, such as entropy.
        """
        return None

    @abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one gradient step, on a batch [B] of transitions unless `learns_from` is another kind.

        The batch holds observations, `action` [B, A], `("next", "reward")` [B, 1] (the n-step discounted
        sum), the observations n steps later under "next", `("next", "terminated")` bool [B, 1] and
        `gamma` [B, 1], the discount of the bootstrap value. So the target is
        `reward + gamma * (1 - terminated) * V(next)`. `cloning` [B, 1] is optional: if it is above 0, the actor's
        loss gets an imitation term with this weight (`policies.bc.imitation`), towards `imitated` [B, A] or, without
        it, the row's action. `imagined` bool [B, 1] is optional too: metrics are separate for these rows, and
        statistics of states exclude them.

        A policy that learns from rollouts gets [B, H + 1] rows instead: observations, `action`, and under "next" the
        `reward` and `terminated` that follow that action (those of the last row are not used). With `replay_rows` T
        there are B segments of real steps beside them, `real` [B, T], with the same keys.

        A policy that learns from segments gets the same keys of [B, history + T] real steps, with `pixels` uint8
        [3, R, R] in place of `frames`. Rows before an episode are copies of its first row. Rows after an episode that
        terminated are copies of its final row, and `terminated` is true from its last step on.

        Returns:
            Metrics by name: detached 0-d tensors on the device. Empty if nothing is learned.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
            KeyError: the batch lacks a key.
        """

    def clone(self, batch: TensorDictBase, weight: float = 1.0) -> dict[str, Tensor]:
        """Take one gradient step of imitation on demonstrated transitions.

        Critics learn from the same batch, so that their values do not mislead the actor later.

        Args:
            batch: [B] transitions as in `update`, all of them demonstrated.
            weight: factor of the imitation loss.

        Raises:
            ValueError: this policy does not learn.
        """
        raise ValueError(f"{type(self).__name__} imitates no demonstrations: agent.cloning.updates must be 0")

    def end_cloning(self) -> None:
        """Switch from imitation to the policy's own losses.

        The optimisers' moments are reset: the second moments of imitation are so small that the first steps on another
        loss would be several times too large.
        """
        for optimizer in self.optimizers.values():
            forget_moments(optimizer)

    @contextmanager
    def limited_noise(self, std: float | None) -> Iterator[None]:
        """Limit the standard deviation of Gaussian exploration noise inside the context; None for no limit.

        Policies without such noise ignore it.
        """
        yield

    def set_env_steps(self, n: int) -> None:
        """Set the number of env steps taken so far, for schedules.

        A policy with a schedule stores `n` in place in a buffer of its actor, so that checkpoints hold it and
        collector workers, which share the actor's tensors, see it. Other policies ignore it.

        Args:
            n: env steps (control steps, action repeat counted).
        """
        # This method is not abstract, because most policies have no schedule.


Imagine = Callable[[Tensor], Tensor]  # actions [B, N, H, A] -> scores [B, N]; higher is better


class Plan(NamedTuple):
    """A Gaussian over the next H actions, and the action to take now.

    Attributes:
        mean: [B, H, A], the plan.
        std: [B, H, A], the remaining standard deviation of the search.
        action: [B, A], the first action of the plan, or of a candidate sampled instead.
    """

    mean: Tensor
    std: Tensor
    action: Tensor


class Planner(ABC):
    """Searches for the next H actions with the highest imagined score.

    B decisions in parallel, N candidates of one call of `imagine`, M proposals, H horizon, A action.

    Attributes:
        horizon: H, agent steps of a plan.
        candidates: N, action sequences of one call of `imagine`.
        std: standard deviation of the first draw.
    """

    horizon: int
    candidates: int
    std: float

    @abstractmethod
    def __call__(self, imagine: Imagine, previous: Tensor, proposals: Tensor | None = None) -> Plan:
        """Plan once.

        Args:
            imagine: scores candidates.
            previous: [B, H, A] in [-1, 1], the rest of the previous plan; zeros if there is none.
            proposals: [B, M, H, A], M <= N: candidates that are added to the sampled ones, unchanged.
        """


def exploring() -> bool:
    """Whether actors explore: torchrl's `exploration_type()` is neither DETERMINISTIC, MODE nor MEAN."""
    return interaction_type() not in (InteractionType.DETERMINISTIC, InteractionType.MODE, InteractionType.MEAN)


@overload
def gradient_step(loss: Tensor, optimizers: Iterable[torch.optim.Optimizer], clip: None = None) -> None: ...
@overload
def gradient_step(loss: Tensor, optimizers: Iterable[torch.optim.Optimizer], clip: float) -> Tensor: ...
def gradient_step(
    loss: Tensor, optimizers: Iterable[torch.optim.Optimizer], clip: float | None = None
) -> Tensor | None:
    """One gradient step of each optimiser on a loss, 0-d; other parameters get no gradient.

    Args:
        loss: 0-d.
        optimizers: of the parameters that learn.
        clip: largest norm of the gradient of all of them together; None does not clip.

    Returns:
        With `clip`, the norm of the gradient before it was clipped, 0-d.
    """
    optimizers = list(optimizers)
    learned = [parameter for o in optimizers for group in o.param_groups for parameter in group["params"]]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=learned)
    norm = None if clip is None else nn.utils.clip_grad_norm_(learned, clip)
    for optimizer in optimizers:
        optimizer.step()
    return norm


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Reset the state of an optimiser: moments and step counts."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        if "step" in group:  # LaProp counts steps for each group, for its warm-up
            group["step"] = 0


_held: ContextVar[dict[str, Tensor] | None] = ContextVar("held", default=None)


@contextmanager
def held_losses() -> Iterator[dict[str, Tensor]]:
    """Defer the checks of `require_finite` inside the context, because they wait for a GPU; yields the losses."""
    held: dict[str, Tensor] = {}
    before = _held.set(held)
    try:
        yield held
    finally:
        _held.reset(before)


def require_finite(losses: Mapping[str, Tensor], advice: str = "lower the learning rate or check the batch") -> None:
    """Check all losses with a single device synchronisation; inside `held_losses` the check is deferred.

    Args:
        losses: 0-d tensors by name.
        advice: end of the error message.

    Raises:
        FloatingPointError: one of them is NaN or infinite.
    """
    held = _held.get()
    if held is not None:
        held.update(losses)
        return
    if not losses:
        return
    values = torch.stack([loss.detach().reshape(()) for loss in losses.values()])
    if not bool(torch.isfinite(values).all()):
        described = ", ".join(f"{name} = {float(value)}" for name, value in zip(losses, values, strict=True))
        raise FloatingPointError(f"a loss is no longer finite ({described}): {advice}")
