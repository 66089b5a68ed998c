"""Recurrence of DreamerV3: a block-diagonal GRU with categorical latents.

B batch, T time, A action, D deterministic width, S categoricals, K classes of each, H hidden width, E embedding.

TorchRL's RSSM modules compute the same (`mbrl bench dreamer` compares them). They are slower, because they repeat the
shared inputs for each block, and multiply embeddings and actions and compute priors inside the loop over time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.rssm.networks import NORM_EPS, linear, scaled_init

VECTOR = 16  # float32 numbers in the widest vector of a CPU


class Latent(NamedTuple):
    """Latent state: `deter` [*B, D], and `stoch` [*B, S, K], one-hot."""

    deter: Tensor
    stoch: Tensor

    @property
    def features(self) -> Tensor:
        """Input of heads and policies, [*B, D + S K]."""
        return torch.cat((self.deter, self.stoch.flatten(-2)), -1)

    def detach(self) -> Latent:
        return Latent(self.deter.detach(), self.stoch.detach())


class BlockLinear(nn.Module):
    """Block-diagonal linear layer: `blocks` layers, each from one part of the input to one part of the output."""

    def __init__(
        self, width_in: int, width_out: int, blocks: int, *, bias: bool = True, fan_in: int | None = None
    ) -> None:
        super().__init__()
        if width_in % blocks or width_out % blocks:
            raise ValueError(f"{blocks} blocks do not divide widths {width_in} and {width_out}")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, width_in // blocks, width_out // blocks))
        self.bias = nn.Parameter(torch.zeros(blocks, 1, width_out // blocks)) if bias else None
        scaled_init(self.weight, fan_in or width_in)  # fan-in of the whole layer, not of a block, as published

    def forward(self, values: Tensor) -> Tensor:
        """[B, width_in] -> [B, blocks, width_out / blocks]."""
        parts = values.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # [blocks, B, width_in / blocks]
        if self.bias is None:
            return torch.bmm(parts, self.weight).transpose(0, 1)
        return torch.baddbmm(self.bias, parts, self.weight).transpose(0, 1)


def _projection(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(linear(width_in, width_out), nn.RMSNorm(width_out, eps=NORM_EPS), nn.SiLU())


class BlockGRU(nn.Module):
    """Deterministic step. Each block reads its own part of `deter` and all of the projected inputs."""

    def __init__(self, deter: int, stoch: int, actions: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.from_deter = _projection(deter, hidden)
        self.from_stoch = _projection(stoch, hidden)
        self.from_action = _projection(actions, hidden)
        # One layer of each block on (own part, inputs), in two pieces so that the inputs are not repeated per block.
        fan_in = deter + 3 * hidden * blocks
        self.own = BlockLinear(deter, deter, blocks, bias=False, fan_in=fan_in)
        self.shared = linear(3 * hidden, deter, fan_in=fan_in)
        self.norm = nn.RMSNorm(deter, eps=NORM_EPS)
        self.gates = BlockLinear(deter, 3 * deter, blocks)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """deter [B, D], stoch [B, S K] and action [B, H] as `from_action` gives it -> deter [B, D]."""
        inputs = torch.cat((self.from_deter(deter), self.from_stoch(stoch), action), -1)
        values = F.silu(self.norm(self.own(deter).flatten(1) + self.shared(inputs)))
        reset, candidate, update = self.gates(values).float().chunk(3, -1)  # each [B, blocks, D / blocks]
        candidate = torch.tanh(torch.sigmoid(reset) * candidate).flatten(1)
        update = torch.sigmoid(update - 1).flatten(1)  # biased towards keeping the state
        return torch.lerp(deter, candidate, update)


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """Probabilities of logits [*B, K] with a share `unimix` of the uniform distribution."""
    return _softmax(logits.float()) * (1 - unimix) + unimix / logits.shape[-1]


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; on a CPU PyTorch computes rows shorter than a vector one by one."""
    if logits.device.type != "cpu" or logits.shape[-1] >= VECTOR:
        return logits.softmax(-1)
    return logits.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).contiguous()


def noise(*shape: int, like: Tensor) -> Tensor:
    """Exponential noise [*B, S, K] for one sample of categoricals."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).exponential_()


def sample(probabilities: Tensor, exponential: Tensor) -> Tensor:
    """Sample one-hot [*B, S, K] from probabilities, with a straight-through gradient."""
    # The smallest of Exp(1) / p falls on class k with probability p_k.
    chosen = (probabilities.detach() / exponential).argmax(-1)
    hot = F.one_hot(chosen, probabilities.shape[-1]).to(probabilities.dtype)
    return hot + (probabilities - probabilities.detach())


class Recurrence(nn.Module):
    """h' = GRU(h, z, a); prior z' ~ p(z' | h'); posterior z' ~ q(z' | h', embedding).

    Args:
        actions: A. embedding: E. deter: D. hidden: H. stoch: S. classes: K. blocks: of the GRU.
        unimix: share of the uniform distribution in every categorical.
    """

    def __init__(
        self, *, actions: int, embedding: int, deter: int, hidden: int, stoch: int, classes: int, blocks: int,
        unimix: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.deter, self.stoch, self.classes, self.unimix = deter, stoch, classes, unimix
        self.gru = BlockGRU(deter, stoch * classes, actions, hidden, blocks)
        layers = [_projection(deter, hidden), _projection(hidden, hidden)]
        self.prior_head = nn.Sequential(*layers, linear(hidden, stoch * classes))
        # One layer on (deter, embedding), in two pieces: the embedding's is computed for all steps at once.
        self.of_embedding = linear(embedding, hidden, fan_in=deter + embedding)
        self.of_deter = linear(deter, hidden, bias=False, fan_in=deter + embedding)
        self.posterior_norm = nn.RMSNorm(hidden, eps=NORM_EPS)
        self.posterior_head = linear(hidden, stoch * classes)

    def initial(self, batch: int) -> Latent:
        """State before an episode: zeros."""
        weight = self.posterior_head.weight
        return Latent(weight.new_zeros(batch, self.deter), weight.new_zeros(batch, self.stoch, self.classes))

    def prior(self, deter: Tensor) -> Tensor:
        """Prior probabilities [*B, S, K] of the latent state, before the observation."""
        logits: Tensor = self.prior_head(deter)
        return mixed(logits.unflatten(-1, (self.stoch, self.classes)), self.unimix)

    def observe(
        self, embedding: Tensor, action: Tensor, is_init: Tensor, before: Latent, exponential: Tensor | None = None
    ) -> tuple[Latent, Tensor]:
        """Infer states from observations, step by step.

        Args:
            embedding: [B, T, E] of observations. action: [B, T, A], the action that led to each observation.
            is_init: bool [B, T], true at the first step of an episode, where earlier state and action are reset.
            before: state [B] before the first observation.
            exponential: [B, T, S, K] from `noise`; None: it is drawn.

        Returns:
            States [B, T], sampled from the posterior, and its probabilities [B, T, S, K].
        """
        batch, time = is_init.shape
        if exponential is None:
            exponential = noise(batch, time, self.stoch, self.classes, like=embedding)
        keep = (~is_init).to(embedding.dtype)[..., None]  # [B, T, 1]
        actions = self.gru.from_action(action * keep).unbind(1)
        seen = self.of_embedding(embedding).unbind(1)
        deter, stoch = before.deter, before.stoch.flatten(1)
        deters: list[Tensor] = []
        stochs: list[Tensor] = []
        posteriors: list[Tensor] = []
        for t in range(time):
            deter = self.gru(deter * keep[:, t], stoch * keep[:, t], actions[t])
            posterior = self._posterior(deter, seen[t])
            drawn = sample(posterior, exponential[:, t])
            stoch = drawn.flatten(1)
            deters.append(deter)
            stochs.append(drawn)
            posteriors.append(posterior)
        return Latent(torch.stack(deters, 1), torch.stack(stochs, 1)), torch.stack(posteriors, 1)

    def _posterior(self, deter: Tensor, seen: Tensor) -> Tensor:
        hidden = F.silu(self.posterior_norm(seen + self.of_deter(deter)))
        logits: Tensor = self.posterior_head(hidden)
        return mixed(logits.unflatten(-1, (self.stoch, self.classes)), self.unimix)

    def imagine(self, state: Latent, action: Tensor) -> Latent:
        """Sample the state [B] after an action [B, A] from the prior."""
        deter = self.gru(state.deter, state.stoch.flatten(1), self.gru.from_action(action))
        return Latent(deter, sample(self.prior(deter), noise(len(deter), self.stoch, self.classes, like=deter)))
