"""The smallest world model and policy that obey the contracts, with answers that can be worked out by hand."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from policies.base import Policy
from worldmodel.base import WorldModel

SIZE = 8


class CountingWorldModel(WorldModel):
    """A frame is its predecessor plus one; the reward is the action's first entry. Counts what it was asked."""

    context_length, max_horizon = 2, 10

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.batches: list[TensorDictBase] = []
        self.reward_batches: list[TensorDictBase] = []
        self._optimizers = {"all": torch.optim.Adam(self.parameters())}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimizers

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {"loss": torch.zeros(())}

    def update_rewards(self, batch: TensorDictBase) -> dict[str, Tensor]:
        self.reward_batches.append(batch)
        return {"reward_loss": torch.zeros(())}

    def start(self, context: TensorDictBase) -> Tensor:
        assert context.batch_size[1] == self.context_length
        return context["pixels"][:, -1]

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        pixels = state + 1
        return pixels, TensorDict(pixels=pixels, reward=action[:, :1], batch_size=[len(action)])

    def fork(self, state: Tensor, n: int) -> Tensor:
        return state.repeat_interleave(n, 0)


class _Bright(nn.Module):
    """Action = mean brightness of the newest frame, twice."""

    def forward(self, frames: Tensor) -> Tensor:
        return (frames[..., -3:, :, :].float().mean((-3, -2, -1)) / 255)[..., None].expand(*frames.shape[:-3], 2)


class BrightnessPolicy(Policy):
    """Acts on the brightness of the newest frame; keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = TensorDictModule(_Bright(), in_keys=["frames"], out_keys=["action"])
        self.batches: list[TensorDictBase] = []

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {"loss": torch.zeros(())}


def episode(number: int, steps: int = 12) -> TensorDict:
    """A record episode whose frames count up from 10 * number and whose rewards are 1000 + the step."""
    at = torch.arange(steps + 1)
    pixels = (10 * number + at).to(torch.uint8)[:, None, None, None].expand(-1, 3, SIZE, SIZE).clone()
    flags = torch.zeros(steps + 1, 1, dtype=torch.bool)
    return TensorDict(
        pixels=pixels,
        action=torch.zeros(steps + 1, 2),
        reward=1000.0 + at[:, None],
        success=flags,
        terminated=flags.clone(),
        truncated=(at == steps - 1)[:, None],
        batch_size=[steps + 1],
    )
