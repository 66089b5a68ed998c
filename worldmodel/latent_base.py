"""Interfaces of models whose latent states a policy reads."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from worldmodel.base import WorldModel


class UnrolledLoss(NamedTuple):
    """Result of LatentDynamics.learn on segments of H + 1 steps.

    Attributes:
        loss: Loss of the model, 0-d.
        metrics: Detached 0-d tensors by name.
        latent: [B, H + 1, D] with gradients: encoded at the first step, predicted from there at the others.
        observed: [B, H, D] without gradient: encoded from the observations of all steps but the first.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    latent: Tensor
    observed: Tensor


class LatentDynamics(nn.Module, ABC):
    """Encodes an observation, and predicts the next latent state and the reward of an action.

    It is not a `WorldModel`: it has no decoder, so that only a learner and a planner in its latent states can use it.
    If the environment terminates episodes, the constructor gets `terminates=True`, and the model needs a continue head.
    Dimensions: *B batch shape, D width of a latent state, A action.

    Attributes:
        observations: Keys that `encode` reads.
        latent_size: D.
        optimizers: All optimisers by name, for checkpoints.
    """

    observations: tuple[str, ...]
    latent_size: int
    optimizers: dict[str, torch.optim.Optimizer]

    @abstractmethod
    def encode(self, observed: TensorDictBase) -> Tensor:
        """Latent states [*B, D] of observations [*B]."""

    @abstractmethod
    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        """Latent states [*B, D] that `action` [*B, A] leads to from `latent` [*B, D]."""

    @abstractmethod
    def reward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Expected reward [*B, 1] of `action` [*B, A] in `latent` [*B, D]."""

    def continue_probability(self, latent: Tensor) -> Tensor:
        """Probability [*B, 1] that the episode continues from `latent` [*B, D]; 1 without a continue head."""
        return torch.ones_like(latent[..., :1])

    @abstractmethod
    def learn(self, segments: TensorDictBase, weight: Tensor) -> UnrolledLoss:
        """Compute the loss on segments of real steps.

        Args:
            segments: [B, H + 1] with the observations, `action` [B, H + 1, A], and `("next", "reward")` and
                `("next", "terminated")` [B, H + 1, 1]. The outcome of the last step's action is not used.
            weight: [B, H], factor of the losses of each predicted step; 0 after the end of an episode.
        """


class SegmentLoss(NamedTuple):
    """Result of LatentWorldModel.learn.

    Attributes:
        loss: Loss of the world model, 0-d.
        metrics: Detached 0-d tensors by name.
        state: Latent states [B, T] of the steps, opaque, with their gradients.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    state: Any


class LatentWorldModel(WorldModel):
    """World model whose latent states are the input of a policy; gradients can flow between the two.

    Attributes:
        feature_size: F, width of the features of a state.
        unknown: The initial state, before any observation, packed: TensorDict [].
    """

    feature_size: int

    @property
    @abstractmethod
    def unknown(self) -> TensorDict: ...

    @abstractmethod
    def learn(self, batch: TensorDictBase, before: TensorDictBase) -> SegmentLoss:
        """Compute the loss on sequences that continue from latent states.

        It does not wait for a GPU: the caller checks that the losses among the metrics are finite.

        Args:
            batch: [B, 1 + T] as for `update`, whose first row precedes the rows to learn from, and `is_init` bool
                [B, 1 + T, 1], true at the first step of an episode, where the latent state is reset.
            before: Packed states [B] of the first row.
        """

    @abstractmethod
    def follow(self, before: TensorDictBase, action: Tensor, observed: TensorDictBase, is_init: Tensor) -> Any:
        """Update states with an observation.

        Args:
            before: Packed states [B].
            action: [B, A], taken in these states.
            observed: The observations [B] that it led to.
            is_init: bool [B, 1], true at the first step of an episode, where the state is reset.

        Returns:
            States [B].
        """

    @abstractmethod
    def imagine(self, state: Any, action: Tensor) -> Any:
        """Sample the next states [B] after `action` [B, A] in `state`."""

    @abstractmethod
    def features(self, state: Any) -> Tensor:
        """Features [*B, F] of states [*B], the input of a policy."""

    @abstractmethod
    def reward(self, features: Tensor) -> Tensor:
        """Expected reward [*B, 1] on arrival at states with features [*B, F]."""

    @abstractmethod
    def continue_probability(self, features: Tensor) -> Tensor:
        """Probability [*B, 1] that the episode continues from states with features [*B, F]."""

    @abstractmethod
    def pack(self, state: Any) -> TensorDict:
        """Pack states [*B] into small tensors [N] without gradient, for the replay buffer; N is the product of B."""

    @abstractmethod
    def unpack(self, packed: TensorDictBase) -> Any:
        """Invert `pack`: states [B]."""


class EmbeddedWorldModel(WorldModel):
    """Adapter of a world model that imagines embeddings of frames and decodes no frame.

    It has no weights of its own: `update` trains the reward predictor of the adapted model. Real frames have embeddings
    of the same kind. B batch, T time, R resolution, D `embedding_size`.

    Attributes:
        model: The adapted model.
        context_keys: Contain `initial`, because embeddings depend on the initial frame of the episode.
    """

    observations = ("embedding",)

    @property
    @abstractmethod
    def model(self) -> WorldModel: ...

    @property
    @abstractmethod
    def frame_size(self) -> int:
        """Width of the latents of one frame. An embedding holds the latents of a frame and of the previous frame."""

    @property
    @abstractmethod
    def updates(self) -> int:
        """Number of updates of the model so far."""

    @abstractmethod
    def changes_after(self, updates: int) -> bool:
        """Whether embeddings may have changed since this number of updates."""

    @abstractmethod
    def latents(self, pixels: Tensor, initial: Tensor) -> Tensor:
        """Latents [B, T, frame_size] of frames uint8 [B, T, 3, R, R] of episodes whose first frames are `initial`.

        Args:
            pixels: uint8 [B, T, 3, R, R].
            initial: uint8 [B, 3, R, R].
        """
