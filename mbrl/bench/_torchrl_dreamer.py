"""DreamerV3 from TorchRL's modules and losses, as in the example of its DreamerV3Loss: the baseline of `dreamer.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import (
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    DreamerV3MLP,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
    TruncatedNormal,
    WorldModelWrapper,
)
from torchrl.objectives import DreamerV3ActorLoss, DreamerV3Loss, DreamerV3ModelLoss, DreamerV3ValueLoss, SoftUpdate
from torchrl.trainers.algorithms.dreamer_v3 import DreamerV3Optimizer

CATEGORICALS, BLOCKS, UNIMIX, DISCOUNT = 32, 8, 0.01, 1 - 1 / 333
LATENT = ["state", "belief"]
NEXT = [("next", key) for key in LATENT]


def learner(key: str, shape: torch.Size, actions: int, units: int, horizon: int) -> DreamerV3Loss:
    """All losses, with DreamerV3's settings, for the observation `key` (`pixels` or `state`) of this shape."""
    deter, stoch = 8 * units, CATEGORICALS * units // 16
    features, two_hot = deter + stoch, SymExpTwoHot()
    encoder: nn.Module
    decoder: nn.Module
    if key == "pixels":
        images = DreamerV3ImageEncoder(depth=units // 16)
        encoder, embedding = images, images.output_features(tuple(shape))
        decoder = DreamerV3ImageDecoder(features, tuple(shape), depth=units // 16, num_blocks=BLOCKS)
    else:
        encoder, embedding = DreamerV3MLP(shape[-1], None, num_cells=units), units
        decoder = DreamerV3MLP(features, shape[-1], num_cells=units)
    prior = RSSMPriorV3(
        action_shape=(actions,), action_dim=actions, hidden_dim=units, rnn_hidden_dim=deter,
        num_categoricals=CATEGORICALS, num_classes=units // 16, recurrent_model="block_gru", num_blocks=BLOCKS,
        unimix=UNIMIX,
    )  # fmt: skip
    posterior = RSSMPosteriorV3(
        units, CATEGORICALS, units // 16, deter, embedding, use_rms_norm=True, unimix=UNIMIX
    )  # fmt: skip
    reward, continues = (DreamerV3MLP(features, out, depth=1, num_cells=units) for out in (two_hot.num_bins, 1))
    step = [*LATENT, "action"]
    world_model = TensorDictSequential(
        TensorDictModule(encoder, [("next", "observation")], [("next", "encoded")]),
        RSSMRolloutV3(
            TensorDictModule(prior, step, [("next", "prior_logits"), *NEXT]),
            TensorDictModule(posterior, [NEXT[1], ("next", "encoded")], [("next", "posterior_logits"), NEXT[0]]),
        ),
        TensorDictModule(decoder, NEXT, [("next", "reco_pixels")]),
        TensorDictModule(reward, NEXT, [("next", "reward_logits")]),
        TensorDictModule(continues, NEXT, [("next", "continue_pred")]),
    )
    model_loss = DreamerV3ModelLoss(
        world_model, kl_mode="separate", unimix=UNIMIX, lambda_continue=1.0, reco_symlog=key != "pixels",
        detach_output=False,
    )  # fmt: skip
    model_loss.set_keys(pixels="observation")  # TorchRL's key "state" is the latent state.
    rewarded = TensorDictModule(_Chained(reward, two_hot), LATENT, ["reward"])
    env = _imagination(TensorDictModule(prior, step, ["_", *LATENT]), rewarded, stoch, deter, actions)
    critic = TensorDictSequential(
        TensorDictModule(DreamerV3MLP(features, two_hot.num_bins, num_cells=units), LATENT, ["state_value_logits"]),
        TensorDictModule(two_hot, ["state_value_logits"], ["state_value"]),
    )
    continuation = TensorDictModule(_Chained(continues, nn.Sigmoid()), LATENT, ["continuation"])
    actor_loss = DreamerV3ActorLoss(
        _actor(features, actions, units), critic, env, continuation_model=continuation, imagination_horizon=horizon,
        use_reinforce=True,
    )  # fmt: skip
    actor_loss.make_value_estimator(gamma=DISCOUNT, lmbda=0.95)
    value_loss = DreamerV3ValueLoss(
        critic, value_loss="two_hot", actor_loss=actor_loss, slow_critic_regularization=1.0
    )  # fmt: skip
    return DreamerV3Loss(model_loss, actor_loss, value_loss)


class _Chained(nn.Sequential):
    """Two modules in sequence; the first takes several inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        first, last = self
        outcome: Tensor = last(first(*inputs))
        return outcome


def _imagination(
    transition: TensorDictModule, reward: TensorDictModule, stoch: int, deter: int, actions: int
) -> DreamerEnv:
    env = DreamerEnv(WorldModelWrapper(transition, reward), prior_shape=(stoch,), belief_shape=(deter,))
    env.observation_spec = Composite(state=Unbounded(stoch), belief=Unbounded(deter))
    env.state_spec = env.observation_spec.clone()
    env.action_spec, env.reward_spec = Bounded(-1, 1, (actions,)), Unbounded((1,))
    return env


def _actor(features: int, actions: int, units: int) -> ProbabilisticTensorDictSequential:
    return ProbabilisticTensorDictSequential(
        TensorDictModule(DreamerV3MLP(features, 2 * actions, num_cells=units, outscale=0.01), LATENT, ["params"]),
        TensorDictModule(NormalParamExtractor(), ["params"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"], ["action"], distribution_class=TruncatedNormal, return_log_prob=True,
            distribution_kwargs={"low": -1.0, "high": 1.0},
        ),
    )  # fmt: skip


def updater(losses: DreamerV3Loss, sample: TensorDict, learning_rate: float) -> tuple[Callable[[], None], int]:
    """A function that takes one update on `sample` [B, T], and the number of trained parameters."""
    trained = [parameter for parameter in losses.parameters() if parameter.requires_grad]
    optimizer, slow = DreamerV3Optimizer(trained, lr=learning_rate), SoftUpdate(losses.value_loss, tau=0.02)

    def update() -> None:
        result = losses(sample.clone(recurse=False))
        optimizer.zero_grad(set_to_none=True)
        torch.stack([value for name, value in result.items() if name.startswith("loss_")]).sum().backward()
        optimizer.step()
        slow.step()

    return update, sum(parameter.numel() for parameter in trained)
