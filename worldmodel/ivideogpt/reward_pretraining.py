"""Pretrains a reward network on the state of the environment, which it learns to read off two frames.

Rewards are those of one task. The positions of the hand and of objects, in the state of Meta-World, are common to many
tasks, and rewards are functions of them.
Dimensions: B batch, T frames, R resolution, S numbers of the state.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.ivideogpt.rewards import FILE, PART, Frames, RewardNetwork
from worldmodel.ivideogpt.training import decay_groups
from worldmodel.ivideogpt.weights.files import write
from worldmodel.reward_base import RewardPretraining


class StateObjective(nn.Module):
    """The error of the state that is read off two frames. Its parameters are those of the network and of a head.

    Args:
        network: The network; its reward head is not trained.
        state_dim: S.
    """

    def __init__(self, network: RewardNetwork, state_dim: int) -> None:
        super().__init__()
        self.network = network
        width = network.frames_linear.out_features
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, state_dim))
        self.standardised = nn.BatchNorm1d(state_dim, affine=False)  # Numbers of different units count alike.

    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            batch: [B, T], T > 1, with `pixels` and `state`; in training B > 1.

        Returns:
            The smooth L1 loss under "loss", and `state_error`, the mean absolute error in standard deviations, 0-d.
        """
        features = self.network.read_frames(batch["pixels"], learning=self.training).flatten(0, 1)
        states = self.standardised(batch["state"][:, 1:].flatten(0, 1))
        found = self.head(features)
        return {"loss": F.smooth_l1_loss(found, states), "state_error": (found.detach() - states).abs().mean()}


class StatePretraining(RewardPretraining):
    """A `RewardNetwork` without actions, with the objective and the optimiser of its pretraining.

    Args:
        resolution: R.
        state_dim: S.
        network: Makes the network when called with (Frames, None).
        optimizer: Makes the optimiser when called with groups of parameters.
    """

    def __init__(
        self,
        resolution: int,
        state_dim: int,
        *,
        network: Callable[..., RewardNetwork],
        optimizer: Callable[..., torch.optim.Optimizer],
    ) -> None:
        super().__init__()
        self.objective = StateObjective(network(Frames(resolution), None), state_dim)
        self.objectives, self.optimizers = {PART: self.objective}, {PART: optimizer(decay_groups(self.objective))}

    def save_pretrained(self, folder: str | Path) -> None:
        """As RewardPretraining.save_pretrained, for `pretrained` of RewardNetwork."""
        network = self.objective.network
        channels = [layer.out_channels for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d)]
        sizes = {"channels": channels, "width": network.frames_linear.out_features}
        write(Path(folder) / PART, FILE, network.frames_reader.state_dict(), sizes)
