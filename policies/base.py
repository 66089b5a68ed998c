"""What every policy offers: an actor that fills in ``action`` and an update that learns from transitions; and planners.

A policy acts and learns; it knows no world model and no environment. Specs and numbers reach it as arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.nn.probabilistic import InteractionType, interaction_type
from torch import Tensor, nn
from torchrl.data import Composite


class Policy(nn.Module, ABC):
    """Base of everything that acts.

    Attributes:
        actor: reads observation keys (``actor.in_keys``), writes ``action`` float32 [*B, A] within the action
            spec. Explores unless torchrl's ``exploration_type()`` is DETERMINISTIC, MODE or MEAN. It is
            what a collector runs.
        carried: keys that the actor writes under "next" and is to find at the next step, zeros in an episode's
            first; with them it is given ``is_init``. None where it needs no memory. ``latent`` among them is kept
            in the replay, with the observation that the actor made it of.
        learns_from: what `update` wants: single transitions, or whole rollouts of its own.
        optimizers: by name; checkpointed beside ``state_dict()``. Empty where nothing is learned.
    """

    actor: TensorDictModuleBase
    carried: Composite | None = None
    learns_from: Literal["transitions", "rollouts"] = "transitions"

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @property
    def device(self) -> torch.device:
        """Where its parameters are; the CPU where it has none."""
        return next(self.parameters(), torch.empty(0)).device

    @abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One gradient step, on a batch [B] of transitions unless ``learns_from`` says otherwise.

        The batch holds observations, ``action`` [B, A], ``("next", "reward")`` [B, 1] (the n-step discounted
        sum), the observations n steps later under "next", ``("next", "terminated")`` bool [B, 1] and
        ``gamma`` [B, 1], the discount of the bootstrap value. So the target is
        ``reward + gamma * (1 - terminated) * V(next)``. Where there is ``cloning`` [B, 1], an actor keeps to the
        ``action`` of the rows in which it is above 0, demonstrated ones, with this weight (``policies.bc.imitation``).

        A policy that learns from rollouts is given [B, H + 1] rows instead: observations, ``action``, and under
        "next" ``reward`` and ``terminated`` of what that action brought (the last row's are not to be used).

        Returns:
            Metrics by name: detached 0-d tensors, left on the device. Empty where nothing is learned.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
            KeyError: the batch lacks a key.
        """

    def clone(self, batch: TensorDictBase, weight: float = 1.0) -> dict[str, Tensor]:
        """One gradient step of imitation, its loss times ``weight``, on transitions [B] that were all demonstrated.

        Whatever values actions learns from them alike, so that it does not mislead the actor later on.

        Raises:
            ValueError: this policy does not learn.
        """
        raise ValueError(f"{type(self).__name__} imitates no demonstrations: agent.cloning.updates must be 0")

    def set_env_steps(self, n: int) -> None:
        """Tell the policy how many env steps (control steps, action repeat counted) were taken so far.

        A policy with a schedule stores ``n`` in place in a buffer of its actor: so it is checkpointed, and
        collector workers which share the actor's tensors see it. Others ignore it.
        """
        # Not abstract: most policies have no schedule.


Imagine = Callable[[Tensor], Tensor]  # actions [B, N, H, A] -> scores [B, N]; more is better


class Plan(NamedTuple):
    """A Gaussian over the next H actions: the mean is the plan, the std what was left open. Both [B, H, A]."""

    mean: Tensor
    std: Tensor


class Planner(ABC):
    """Chooses the next H actions by what they are imagined to be worth; it knows neither world model nor environment.

    B decisions side by side, N candidates of one call of `imagine`, M proposals, H horizon, A action.

    Attributes:
        horizon: H. candidates: N. std: the standard deviation that its search begins with.
    """

    horizon: int
    candidates: int
    std: float

    @abstractmethod
    def __call__(self, imagine: Imagine, previous: Tensor, proposals: Tensor | None = None) -> Plan:
        """Plan once.

        Args:
            imagine: says what candidates are worth.
            previous: [B, H, A] in [-1, 1], the rest of the previous plan; zeros where there is none.
            proposals: [B, M, H, A], M <= N: candidates that take part as they are.
        """


def exploring() -> bool:
    """Whether actors are to explore now, by torchrl's ``exploration_type()``."""
    return interaction_type() not in (InteractionType.DETERMINISTIC, InteractionType.MODE, InteractionType.MEAN)


def descend(loss: Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """One step of each optimiser along the gradient of the loss, 0-d."""
    optimizers = list(optimizers)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def require_finite(losses: Mapping[str, Tensor]) -> None:
    """FloatingPointError naming the losses if one is NaN or infinite; one device synchronisation in all."""
    values = torch.stack([loss.detach().reshape(()) for loss in losses.values()])
    if not bool(torch.isfinite(values).all()):
        described = ", ".join(f"{name} = {float(value)}" for name, value in zip(losses, values, strict=True))
        raise FloatingPointError(
            f"a loss is no longer finite ({described}): lower the learning rate or check the batch"
        )
