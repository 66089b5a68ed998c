"""DreamerV3's recurrent state-space model (Hafner et al. 2023, arXiv 2301.04104) as a world model.

Dimensions: B batch, T time, C context, A action, D deterministic width, F features, R resolution. TorchRL's MLPs,
two-hot rewards and LaProp with adaptive gradient clipping are used. Its losses are not: by default they clip free bits
per categorical, do not mix in the uniform distribution and balance the KL differently. For its RSSM modules see
worldmodel/rssm/recurrence.py.
"""

from typing import Literal, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Composite, TensorSpec
from torchrl.modules import DreamerV3MLP, SymExpTwoHot
from torchrl.modules.functional import symexp, symlog
from torchrl.trainers.algorithms.dreamer_v3 import DreamerV3Optimizer

from worldmodel.finite import require_finite
from worldmodel.latent_base import LatentWorldModel, SegmentLoss
from worldmodel.ranges import Count, Frames, LearningRate, Number, Share, Weight, Width
from worldmodel.rssm.losses import kl_losses, squared_error
from worldmodel.rssm.networks import (
    PixelDecoder,
    PixelEncoder,
    Standardiser,
    StateEncoder,
    mlp,
    norms_in_float32,
    pictures,
)
from worldmodel.rssm.recurrence import Latent, Recurrence

NO_CLASS = 255  # a packed categorical without a class, as in the initial state
SCALES = {"reconstruction": 1.0, "reward": 1.0, "continue": 1.0, "dynamics": 1.0, "representation": 0.1}


class Arrivals(NamedTuple):
    """Steps [B, T] in the order of the world model: an observation with the action that led to it.

    Attributes:
        observed: Observations.
        action: Action that led to the observation; zero at the first step of an episode.
        reward: Reward of that action.
        terminated: Whether the episode terminated on arrival.
        is_init: Whether the step is the first of an episode.
    """

    observed: TensorDictBase
    action: Tensor
    reward: Tensor
    terminated: Tensor
    is_init: Tensor


class RSSM(LatentWorldModel):
    """Latent dynamics learned from pixels or from state.

    Args:
        observation_spec: Has `pixels` uint8 [3, R, R] or `state` [S].
        action_spec: Spec of actions [A].
        pixels: Whether pixels are observed, with `task` [N] where there are several tasks. False: the state.
        terminates: Whether `step` draws terminations from the continue head, which always learns.
        units: Sizes in one number, a multiple of 16 from 32 on. MLPs and hidden layers have this width, the recurrent
            state 8 times as much; units / 16 is the number of classes of each categorical and the width of the
            convolutions. 64 is the 1M model, 256 12M, 384 25M, 512 50M, 768 100M, 1024 200M.
        categoricals: Categorical variables of the latent state.
        blocks: Blocks of the GRU.
        unimix: Share of the uniform distribution in every categorical, in [0, 1].
        free_nats: A KL below this has no gradient.
        context_length: Real steps from which `start` infers a state.
        learning_rate: Of LaProp with adaptive gradient clipping.
        warmup: Updates over which the learning rate rises linearly.
        precision: Type of matrix products and convolutions. Weights, norms, latent states, gates, probabilities and
            losses stay float32.

    Raises:
        ValueError: `units` is out of range, or the environment does not have what is observed.
    """

    max_horizon = 10_000  # There is no limit, but errors accumulate.

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        pixels: bool,
        terminates: bool = False,
        units: Width = 64,
        categoricals: Width = 32,
        blocks: Number = 8,
        unimix: Share = 0.01,
        free_nats: Weight = 1.0,
        context_length: Frames = 5,
        learning_rate: LearningRate = 4e-5,
        warmup: Count = 1000,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.lower_precision, self.predicts_termination = precision == "bfloat16", terminates
        if units < 32 or units % 16:
            raise ValueError(f"rssm: units is {units}; it must be a multiple of 16 from 32 on")
        self.key = "pixels" if pixels else "state"
        if self.key not in [str(key) for key in observation_spec]:
            raise ValueError(f"dreamerv3 learns from {self.key}, which the environment does not give: see agent.pixels")
        self.tasks = observation_spec["task"].shape[-1] if pixels and "task" in observation_spec.keys() else 0
        self.observations = (self.key, "task") if self.tasks else (self.key,)
        self.context_length, self.free_nats, self.action_dim = context_length, free_nats, action_spec.shape[-1]
        deter, classes = 8 * units, units // 16
        self.feature_size = deter + categoricals * classes
        self._make_observers(observation_spec[self.key].shape, units)
        self.recurrence = Recurrence(
            actions=self.action_dim, embedding=self.encoder.out_features + self.tasks, deter=deter, hidden=units,
            stoch=categoricals, classes=classes, blocks=blocks, unimix=unimix,
        )  # fmt: skip
        self.two_hot = SymExpTwoHot()
        head = {"depth": 1, "units": units}
        self.reward_head = mlp(self.feature_size, self.two_hot.num_bins, outscale=0.0, **head)
        self.continue_head = mlp(self.feature_size, 1, **head)
        self.task_head = mlp(self.feature_size, self.tasks, **head) if self.tasks else None
        if self.lower_precision:
            norms_in_float32(self)
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
            self.standardiser = Standardiser(self.state_dim)
            self.encoder = StateEncoder(self.state_dim, units)
            self.decoder = mlp(self.feature_size, self.state_dim, depth=3, units=units)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return dict(self._optimizers)

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """As WorldModel.update; the first row of each sequence is observed as the first of an episode."""
        learned = self._learn(self._from_scratch(batch), self.recurrence.initial(len(batch)))
        require_finite(learned.metrics, "agent.policy.world_model.learning_rate")
        optimizer = self._optimizers["world_model"]
        optimizer.zero_grad(set_to_none=True)
        learned.loss.backward()
        optimizer.step()
        return learned.metrics

    def learn(self, batch: TensorDictBase, before: TensorDictBase) -> SegmentLoss:
        return self._learn(self._going_on(batch), self.unpack(before))

    def losses(self, steps: Arrivals, before: Latent) -> tuple[dict[str, Tensor], Latent]:
        """The losses, 0-d by the names of SCALES, and the latent states [B, T] with their gradients."""
        seen = self.read(steps.observed[self.key])
        embedding = self._embed(seen, steps.observed)
        latent, posterior = self.recurrence.observe(embedding, steps.action, steps.is_init, before)
        features = latent.features  # [B, T, F]
        dynamics, representation = kl_losses(posterior, self.recurrence.prior(latent.deter), self.free_nats)
        earned = (~steps.is_init).float()  # The first step of an episode has no reward.
        reward = self.two_hot.loss(self.reward_head(features).float(), steps.reward) * earned
        continues = F.binary_cross_entropy_with_logits(
            self.continue_head(features).float().squeeze(-1), (~steps.terminated).float(), reduction="none"
        )
        losses = {
            "reconstruction": self._reconstruction(features.flatten(0, 1), seen, steps.observed),
            "reward": reward.mean(),
            "continue": continues.mean(),
            "dynamics": dynamics.mean(),
            "representation": representation.mean(),
        }
        assert losses.keys() == SCALES.keys()
        return losses, latent

    def _learn(self, steps: Arrivals, before: Latent) -> SegmentLoss:
        if self.key == "state":
            self.standardiser.observe(steps.observed[self.key].flatten(0, -2))
        with self._autocast():
            losses, latent = self.losses(steps, before)
        loss = torch.stack([SCALES[name] * loss for name, loss in losses.items()]).sum()
        return SegmentLoss(loss, {f"{name}_loss": loss.detach() for name, loss in losses.items()}, latent)

    def _from_scratch(self, batch: TensorDictBase) -> Arrivals:
        """All rows of sequences [B, T], the first as the first of an episode."""
        reward, terminated = (_shifted(batch["next", name].squeeze(-1)) for name in ("reward", "terminated"))
        is_init = torch.zeros_like(terminated)
        is_init[:, 0] = True
        observed = batch.select(*self.observations)
        return Arrivals(observed, _shifted(batch["action"]), reward, terminated, is_init)

    def _going_on(self, batch: TensorDictBase) -> Arrivals:
        """All rows but the first of sequences [B, 1 + T]."""
        reward, terminated = (batch["next", name].squeeze(-1)[:, :-1] for name in ("reward", "terminated"))
        is_init = batch["is_init"].squeeze(-1)[:, 1:]
        observed = batch.select(*self.observations)[:, 1:]
        return Arrivals(observed, batch["action"][:, :-1], reward, terminated & ~is_init, is_init)

    def start(self, context: TensorDictBase) -> Latent:
        action = _shifted(context["action"])
        is_init = torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
        latent = self._observe(context, action, is_init, self.recurrence.initial(len(action)))
        return Latent(latent.deter[:, -1], latent.stoch[:, -1])

    def follow(self, before: TensorDictBase, action: Tensor, observed: TensorDictBase, is_init: Tensor) -> Latent:
        rows = observed.select(*self.observations)[:, None]
        latent = self._observe(rows, action[:, None], is_init, self.unpack(before))
        return Latent(latent.deter[:, 0], latent.stoch[:, 0])

    def _observe(self, observed: TensorDictBase, action: Tensor, is_init: Tensor, before: Latent) -> Latent:
        with self._autocast():
            embedding = self._embed(self.read(observed[self.key]), observed)
            return self.recurrence.observe(embedding, action, is_init, before)[0]

    def _embed(self, seen: Tensor, observed: TensorDictBase) -> Tensor:
        """Embeddings [B, T, E] of observations [B, T]: of `seen` [B * T, ...], see `read`, and of the task."""
        embedding: Tensor = self.encoder(seen).float().unflatten(0, observed.batch_size)
        return torch.cat((embedding, observed["task"]), -1) if self.tasks else embedding

    def _reconstruction(self, features: Tensor, seen: Tensor, observed: TensorDictBase) -> Tensor:
        """Squared error of all observations, from features [B * T, F]; 0-d."""
        error = squared_error(self.decoder(features).float(), seen)
        if self.task_head is None:
            return error
        return error + squared_error(self.task_head(features).float(), observed["task"].flatten(0, 1))

    def imagine(self, state: Latent, action: Tensor) -> Latent:
        with self._autocast():
            return self.recurrence.imagine(state, action)

    def step(self, state: Latent, action: Tensor) -> tuple[Latent, TensorDict]:
        state = self.imagine(state, action)
        features = self.features(state)
        predicted = {self.key: self.decode(features), "reward": self.reward(features)}
        if self.task_head is not None:
            predicted["task"] = self.task_head(features)
        if self.predicts_termination:
            probability = self.continue_probability(features)
            predicted["terminated"] = torch.rand_like(probability) >= probability
        return state, TensorDict(predicted, batch_size=[len(action)])

    def fork(self, state: Latent, n: int) -> Latent:
        return Latent(*(part.repeat_interleave(n, 0) for part in state))

    def read(self, observation: Tensor) -> Tensor:
        """Input of the encoder, and target of the decoder: [N, ...], images in [0, 1] or symlog states."""
        if self.key == "pixels":
            return pictures(observation)
        return symlog(self.standardiser(observation.flatten(0, -2)))

    def decode(self, features: Tensor) -> Tensor:
        """Decode features [N, F] to pixels uint8 or state, in the units of the environment."""
        with self._autocast():
            predicted: Tensor = self.decoder(features).float()
        if self.key == "pixels":
            return (predicted * 255).round().to(torch.uint8)
        return self.standardiser.inverse(symexp(predicted))

    def features(self, state: Latent) -> Tensor:
        return state.features

    def reward(self, features: Tensor) -> Tensor:
        with self._autocast():
            logits = self.reward_head(features)
        expected: Tensor = self.two_hot(logits.float())
        return expected

    def continue_probability(self, features: Tensor) -> Tensor:
        with self._autocast():
            logits = self.continue_head(features)
        return torch.sigmoid(logits.float())

    def _autocast(self) -> torch.autocast:
        """Around whole methods: what is cast under no_grad must not be kept for products that need gradients."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.lower_precision)

    @property
    def unknown(self) -> TensorDict:
        state = self.recurrence.initial(1)
        return self.pack(state)[0]

    def pack(self, state: Latent) -> TensorDict:
        deter, stoch = state.deter.detach().flatten(0, -2), state.stoch.detach()
        classes = torch.where(stoch.any(-1), stoch.argmax(-1), NO_CLASS).to(torch.uint8)
        return TensorDict(deter=deter, stoch=classes.flatten(0, -2), batch_size=[len(deter)])

    def unpack(self, packed: TensorDictBase) -> Latent:
        deter, classes = packed["deter"], packed["stoch"].long()[..., None]
        numbers = torch.arange(self.recurrence.classes, device=deter.device)
        return Latent(deter, (classes == numbers).to(deter.dtype))


def _shifted(values: Tensor) -> Tensor:
    """values[:, t - 1] at t; zeros at t = 0."""
    return torch.cat((torch.zeros_like(values[:, :1]), values[:, :-1]), 1)
