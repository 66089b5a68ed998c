"""The one interface of every world model: learn from sequences, then imagine from real steps."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn


class Outcome(NamedTuple):
    """What imagined rollouts of R rows came to.

    Attributes:
        reward: float32 [R, H] in the environment's units; None of a model that predicts none.
        pixels: uint8 [R, 3, side, side], the last frame; None where it was not asked for.
    """

    reward: Tensor | None
    pixels: Tensor | None


class WorldModel(nn.Module, ABC):
    """Predicts what actions lead to. Knows no reinforcement learning.

    Dimensions: B batch, T time, C context frames, A action width, R resolution.
    Time: ``action[t]`` is taken at ``pixels[t]`` and leads to ``pixels[t + 1]``;
    ``("next", "reward")[t]`` is earned by ``action[t]``, on arriving at ``pixels[t + 1]``.

    Attributes:
        context_length: C, the number of real steps that ``start`` needs.
        max_horizon: how many steps may be imagined from one ``start``.
        observations: what it observes and predicts: ``pixels``, ``state``, or both; and ``task`` where it is told that.
        resolution: R, where it sees pixels. state_dim: width of ``state``, where it predicts it.
        tasks: N, width of the one-hot ``task``, where it is told that.
        action_dim: A; 0 for a model that only watches.
        fits: whether it learns by ``fit``, from all that happened, instead of by ``update``.
        goal_conditioned: whether ``start`` needs a ``goal`` frame. predicts_reward: whether ``step`` gives a reward.
        measures: names of what ``step`` says of how unsure the model is; more is less sure.
    """

    context_length: int
    max_horizon: int
    observations: tuple[str, ...] = ("pixels",)
    resolution: int
    state_dim: int
    tasks: int
    action_dim: int
    fits: bool = False
    goal_conditioned: bool = False
    predicts_reward: bool = True
    measures: tuple[str, ...] = ()

    @property
    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimiser by name, for checkpoints."""

    @abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One gradient step on sequences.

        Args:
            batch: [B, T] with ``pixels`` uint8 [B, T, 3, R, R] (and whatever else the model observes),
                ``action`` [B, T, A] and ``("next", "reward")`` [B, T, 1].

        Returns:
            Flat metrics, detached 0-d tensors.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; no weight was changed.
        """

    def fit(self, transitions: TensorDictBase, max_updates: int) -> dict[str, Tensor]:
        """Train on all that happened, until data that are held out are predicted no better.

        Args:
            transitions: [N] single steps: each of ``observations`` and the same under "next", ``action`` [N, A],
                ``("next", "reward")`` [N, 1], and ``index`` int64 [N], which stays with a transition for ever.
            max_updates: gradient steps at most.

        Returns:
            Flat metrics, detached 0-d tensors; ``updates`` is the number of gradient steps taken.

        Raises:
            FloatingPointError: a loss is not finite.
            TypeError: the model learns by ``update``.
        """
        raise TypeError(f"{type(self).__name__} learns by update, not by fit")

    @abstractmethod
    def start(self, context: TensorDictBase) -> Any:
        """Encode real steps once.

        Args:
            context: [B, C], oldest first, with ``observations`` and ``action``; ``action[:, c]`` leads to frame
                c + 1, so the last one is unused.

        Returns:
            An opaque state from which ``step`` goes on.
        """

    @abstractmethod
    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDictBase]:
        """Imagine one step under ``action`` [B, A].

        Returns:
            The next state, and a TensorDict [B] with what the model predicts, such as ``pixels`` uint8
            [B, 3, R, R], ``reward`` float32 [B, 1] in the environment's units, and each of ``measures`` float32
            [B, 1].
        """

    @abstractmethod
    def fork(self, state: Any, n: int) -> Any:
        """A state of B * n rows: row b * n + i is the i-th copy of row b; the encoded context is shared."""

    @torch.no_grad()
    def predict(self, context: TensorDictBase, actions: Tensor, samples: int = 1) -> TensorDict:
        """Whole rollouts; models that decode frames faster together do so here.

        Args:
            context: [B, C] as for ``start``.
            actions: [B, H, A]; ``actions[:, 0]`` leads to the first imagined frame. An action-free model reads H alone.
            samples: n rollouts of each context under its actions.

        Returns:
            [B * n, H] with what ``step`` predicts; row b * n + i is the i-th rollout of context b.
        """
        state, steps = self.fork(self.start(context), samples), []
        for action in actions.repeat_interleave(samples, 0).unbind(1):
            state, prediction = self.step(state, action)
            steps.append(prediction)
        rollout = torch.stack(steps, 1)
        assert isinstance(rollout, TensorDict)
        return rollout

    @torch.no_grad()
    def outcome(self, state: Any, actions: Tensor, last_frame: bool = False) -> Outcome:
        """What actions [R, H, A] lead to from a state of R rows; models that need not decode frames for it do not.

        Args:
            state: as ``start`` or ``fork`` gave it; it is used up, as by ``step``.
            last_frame: whether the last frame is wanted.
        """
        rewards, prediction = [], None
        for action in actions.unbind(1):
            state, prediction = self.step(state, action)
            rewards.append(prediction["reward"] if self.predicts_reward else None)
        known = [reward for reward in rewards if reward is not None]
        pixels = prediction["pixels"] if last_frame and prediction is not None else None
        return Outcome(torch.cat(known, 1) if known else None, pixels)

    def reconstruct(self, context: TensorDictBase) -> Tensor:
        """Of real steps [B, C] the frames uint8 as the model keeps them: whole, where it has no tokenizer."""
        pixels: Tensor = context["pixels"]
        return pixels

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        """The codes of real steps [B, T], T > C, and the size of their codebook, by codebook; {} without any."""
        return {}


class Learned(NamedTuple):
    """What a LatentWorldModel makes of sequences.

    Attributes:
        loss: 0-d, what it descends. metrics: detached 0-d tensors.
        state: latent states [B, T] of the steps, opaque, with their gradients.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    state: Any


class LatentWorldModel(WorldModel):
    """A world model whose latent states a policy acts on and learns in, with gradients between the two.

    Attributes:
        feature_size: F, width of what a policy reads of a state.
        unknown: a state that nobody has followed, packed: TensorDict [].
    """

    feature_size: int

    @property
    @abstractmethod
    def unknown(self) -> TensorDict: ...

    @abstractmethod
    def learn(self, batch: TensorDictBase, before: TensorDictBase) -> Learned:
        """What an update descends, for sequences that go on from latent states.

        Args:
            batch: [B, 1 + T] as for ``update``, whose first row precedes what is learned from, and ``is_init`` bool
                [B, 1 + T, 1], where an episode begins: there nothing that was before counts.
            before: packed states [B] of the rows before.
        """

    @abstractmethod
    def follow(self, before: TensorDictBase, action: Tensor, observed: TensorDictBase, is_init: Tensor) -> Any:
        """The states [B] on observing what ``action`` [B, A] led to from packed states [B]; is_init bool [B, 1]."""

    @abstractmethod
    def imagine(self, state: Any, action: Tensor) -> Any:
        """The states [B] that ``action`` [B, A] may lead to."""

    @abstractmethod
    def features(self, state: Any) -> Tensor:
        """What a policy reads of states [*B]: [*B, F]."""

    @abstractmethod
    def reward(self, features: Tensor) -> Tensor:
        """Expected reward of arriving there: [*B, F] -> [*B, 1]."""

    @abstractmethod
    def goes_on(self, features: Tensor) -> Tensor:
        """Probability that the episode goes on from there: [*B, F] -> [*B, 1]."""

    @abstractmethod
    def pack(self, state: Any) -> TensorDict:
        """States [*B] as small tensors [N] without gradient, for the replay; N is the product of B."""

    @abstractmethod
    def unpack(self, packed: TensorDictBase) -> Any:
        """The states [B] that were packed."""
