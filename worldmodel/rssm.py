"""DreamerV3's recurrent state-space model (Hafner et al. 2023, arXiv 2301.04104) as a world model.

B batch, T time, C context, A action, D deterministic width, F features, R resolution. What TorchRL does right is used: MLPs,
two-hot rewards, LaProp with adaptive gradient clipping. Not its losses (free bits per categorical by default) and not
its RSSM modules (see worldmodel/recurrence.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F
from torchrl.modules import DreamerV3MLP, SymExpTwoHot
from torchrl.modules.functional import symexp, symlog
from torchrl.trainers.algorithms.dreamer_v3 import DreamerV3Optimizer

from worldmodel.base import WorldModel
from worldmodel.dreamer_nets import NORM_EPS, PixelDecoder, PixelEncoder, StateEncoder, pictures
from worldmodel.recurrence import Latent, Recurrence
from worldmodel.rssm_losses import kl_losses, squared_error

if TYPE_CHECKING:  # only for types: importing torchrl takes seconds
    from torchrl.data import Composite, TensorSpec

SCALES = {"reconstruction": 1.0, "reward": 1.0, "continue": 1.0, "dynamics": 1.0, "representation": 0.1}


class Arrivals(NamedTuple):
    """Steps by what is seen on arrival, [B, T]: the action that led here, and what it earned.

    The world model's own order: its first row may be an episode's first, which no action led to.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    is_init: Tensor


class RSSM(WorldModel):
    """Latent dynamics learned from pixels or from state.

    Args:
        observation_spec: holds `pixels` uint8 [3, R, R] or `state` [S]. action_spec: [A].
        pixels: which of them is observed.
        units: the size of everything: MLPs and hidden layers are as wide, the recurrent state is 8 times as wide, and a
            16th is the number of classes of each categorical and the width of the convolutions. 64 is the 1M model,
            256 12M, 384 25M, 512 50M, 768 100M, 1024 200M.
        categoricals, blocks: of the latent state, of the GRU.
        unimix: share of the uniform distribution in every categorical.
        free_nats: below this the KL trains nothing.
        context_length: real steps from which `start` finds a state.
        learning_rate, warmup: of LaProp with adaptive gradient clipping; updates over which the rate rises.
    """

    max_horizon = 10_000  # there is no bound; errors grow

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        pixels: bool,
        units: int = 64,
        categoricals: int = 32,
        blocks: int = 8,
        unimix: float = 0.01,
        free_nats: float = 1.0,
        context_length: int = 5,
        learning_rate: float = 4e-5,
        warmup: int = 1000,
    ) -> None:
        super().__init__()
        if units < 32 or units % 16:
            raise ValueError(f"rssm: units is {units}; it must be a multiple of 16 from 32 on")
        self.key = "pixels" if pixels else "state"
        if self.key not in [str(key) for key in observation_spec]:
            raise ValueError(f"dreamerv3 is to learn from {self.key}, which the environment does not give: see agent.pixels")
        self.observations = (self.key,)
        self.context_length, self.free_nats, self.action_dim = context_length, free_nats, action_spec.shape[-1]
        deter, classes = 8 * units, units // 16
        self.feature_size = deter + categoricals * classes
        self._make_observers(observation_spec[self.key].shape, units)
        self.recurrence = Recurrence(
            actions=self.action_dim, embedding=self.encoder.out_features, deter=deter, hidden=units,
            stoch=categoricals, classes=classes, blocks=blocks, unimix=unimix,
        )  # fmt: skip
        self.two_hot = SymExpTwoHot()
        head = {"depth": 1, "num_cells": units, "norm_eps": NORM_EPS}
        self.reward_head = DreamerV3MLP(self.feature_size, self.two_hot.num_bins, outscale=0.0, **head)
        self.continue_head = DreamerV3MLP(self.feature_size, 1, **head)
        learned = list(self.parameters())
        self._optimizers = {"world_model": DreamerV3Optimizer(learned, lr=learning_rate, warmup_steps=warmup)}

    def _make_observers(self, shape: torch.Size, units: int) -> None:
        self.encoder: PixelEncoder | StateEncoder
        self.decoder: PixelDecoder | DreamerV3MLP
        if self.key == "pixels":
            self.resolution, depth = shape[-1], units // 16
            self.encoder = PixelEncoder(self.resolution, depth)
            self.decoder = PixelDecoder(self.feature_size, self.resolution, depth, units)
        else:
            self.state_dim = shape[-1]
            self.encoder = StateEncoder(self.state_dim, units)
            self.decoder = DreamerV3MLP(self.feature_size, self.state_dim, depth=3, num_cells=units, norm_eps=NORM_EPS)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return dict(self._optimizers)

    # ---------------------------------------------------------------- learning
    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        losses, _ = self.losses(batch)
        require_finite(losses)
        optimizer = self._optimizers["world_model"]
        optimizer.zero_grad(set_to_none=True)
        total(losses).backward()
        optimizer.step()
        return metrics(losses)

    def losses(self, batch: TensorDictBase, before: Latent | None = None) -> tuple[dict[str, Tensor], Latent]:
        """What to descend, by the names of SCALES and 0-d; and the latent states, with their gradients.

        Args:
            batch: [B, T] as for `update`; its first row is observed as an episode's first. With `before`:
                [B, 1 + T], whose first row precedes what is observed, and `is_init` bool [B, 1 + T, 1], where an
                episode begins.
            before: latent states [B] of the rows before.
        """
        steps = self._arrivals(batch, before)
        shape, seen = steps.is_init.shape, self.read(steps.observation)
        before = before or self.recurrence.initial(len(batch))
        embedding = self.encoder(seen).unflatten(0, shape)
        latent, posterior = self.recurrence.observe(embedding, steps.action, steps.is_init, before)
        features = latent.features  # [B, T, F]
        dynamics, representation = kl_losses(posterior, self.recurrence.prior(latent.deter), self.free_nats)
        earned = (~steps.is_init).float()  # no action earned anything on arriving at an episode's first step
        reward = self.two_hot.loss(self.reward_head(features), steps.reward) * earned
        goes_on = F.binary_cross_entropy_with_logits(
            self.continue_head(features).squeeze(-1), (~steps.terminated).float(), reduction="none"
        )
        losses = {
            "reconstruction": squared_error(self.decoder(features.flatten(0, 1)), seen),
            "reward": reward.mean(),
            "continue": goes_on.mean(),
            "dynamics": dynamics.mean(),
            "representation": representation.mean(),
        }
        assert losses.keys() == SCALES.keys()
        return losses, latent

    def _arrivals(self, batch: TensorDictBase, before: Latent | None) -> Arrivals:
        observation, action, after = batch[self.key], batch["action"], batch["next"]
        reward, terminated = after["reward"].squeeze(-1), after["terminated"].squeeze(-1)
        if before is not None:
            is_init = batch["is_init"].squeeze(-1)[:, 1:]
            terminated = terminated[:, :-1] & ~is_init
            return Arrivals(observation[:, 1:], action[:, :-1], reward[:, :-1], terminated, is_init)
        is_init = torch.zeros_like(terminated)
        is_init[:, 0] = True
        return Arrivals(observation, *(F.pad(action[:, :-1], (0, 0, 1, 0)), _shifted(reward), _shifted(terminated)), is_init)

    # -------------------------------------------------------------- predicting
    def start(self, context: TensorDictBase) -> Latent:
        seen, action = context[self.key], F.pad(context["action"][:, :-1], (0, 0, 1, 0))
        is_init = torch.zeros(seen.shape[:2], dtype=torch.bool, device=seen.device)
        embedding = self.encoder(self.read(seen)).unflatten(0, is_init.shape)
        latent, _ = self.recurrence.observe(embedding, action, is_init, self.recurrence.initial(len(seen)))
        return Latent(latent.deter[:, -1], latent.stoch[:, -1])

    def step(self, state: Latent, action: Tensor) -> tuple[Latent, TensorDict]:
        state = self.recurrence.imagine(state, action)
        features = state.features
        predicted = {self.key: self.decode(features), "reward": self.reward(features)}
        return state, TensorDict(predicted, batch_size=[len(action)])

    def fork(self, state: Latent, n: int) -> Latent:
        return Latent(*(part.repeat_interleave(n, 0) for part in state))

    def read(self, observation: Tensor) -> Tensor:
        """pixels or state [*B, ...] -> pictures in [0, 1] or symlog values, [N, ...]: what is encoded and drawn."""
        return pictures(observation) if self.key == "pixels" else symlog(observation.flatten(0, -2))

    def decode(self, features: Tensor) -> Tensor:
        """Features [N, F] -> pixels uint8 or state, as the environment has them."""
        predicted: Tensor = self.decoder(features)
        return (predicted * 255).round().to(torch.uint8) if self.key == "pixels" else symexp(predicted)

    def reward(self, features: Tensor) -> Tensor:
        """Features [*B, F] -> expected reward of arriving there [*B, 1]."""
        expected: Tensor = self.two_hot(self.reward_head(features))
        return expected

    def goes_on(self, features: Tensor) -> Tensor:
        """Features [*B, F] -> probability that the episode goes on from there [*B, 1]."""
        return torch.sigmoid(self.continue_head(features))


def _shifted(values: Tensor) -> Tensor:
    """values[t - 1] at t, [B, T]; zero at first."""
    return torch.cat((torch.zeros_like(values[:, :1]), values[:, :-1]), 1)


def total(losses: dict[str, Tensor]) -> Tensor:
    """The weighted sum of `RSSM.losses`."""
    return torch.stack([SCALES[name] * loss for name, loss in losses.items()]).sum()


def metrics(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses as metrics: detached, `…_loss`."""
    return {f"{name}_loss": loss.detach() for name, loss in losses.items()}


def require_finite(losses: dict[str, Tensor]) -> None:
    """FloatingPointError naming the losses where one is NaN or infinite; one device synchronisation in all."""
    if not bool(torch.isfinite(torch.stack([loss.detach() for loss in losses.values()])).all()):
        described = ", ".join(f"{name} = {float(loss)}" for name, loss in losses.items())
        raise FloatingPointError(f"a loss of the world model is no longer finite ({described}): lower its learning rate")
