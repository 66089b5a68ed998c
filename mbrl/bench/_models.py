"""iVideoGPT as configured, with random weights, and random inputs to measure it on."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite

from mbrl.compose import composed
from worldmodel.ivideogpt.model import IVideoGPT

NANO, BASE = "ivideogpt_nano", "ivideogpt_base"
ACTION = 4


def build(name: str = NANO, segment_length: int = 12, parallel: bool = False) -> IVideoGPT:
    """A model with random weights.

    Args:
        name: a file in configs/worldmodel.
        segment_length: frames of its longest segment.
        parallel: whether the tokens of a frame are predicted together. Otherwise one after the other, as published.
    """
    config = composed(["agent=mbpo_ivideogpt", f"worldmodel@agent.world_model={name}"]).agent.world_model
    config.segment_length, config.transformer.parallel = segment_length, parallel
    side = config.tokenizer.resolution
    pixels = Composite(pixels=Bounded(0, 255, (3, side, side), dtype=torch.uint8))
    torch.manual_seed(0)
    make = instantiate(config, _partial_=True)
    model: IVideoGPT = make(observation_spec=pixels, action_spec=Bounded(-1, 1, (ACTION,)))
    for quantizer in (model.tokenizer.quantize, model.tokenizer.dynamics_quantize):
        if quantizer.warmup:
            quantizer.seen.fill_(quantizer.warmup)  # The codebook is past its warm-up.
    return model.eval()


def starts(model: IVideoGPT, batch: int, horizon: int) -> tuple[TensorDict, Tensor]:
    """Random context frames [B, C] and actions [B, H, A]."""
    side = model.tokenizer.resolution
    shape = (batch, model.context_length, 3, side, side)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    return TensorDict(pixels=pixels, batch_size=shape[:2]), torch.rand(batch, horizon, ACTION) * 2 - 1


def segments(model: IVideoGPT, batch: int) -> TensorDict:
    """Random training segments [B, T] of the model's longest length."""
    side, shape = model.tokenizer.resolution, (batch, model.segment_length)
    return TensorDict(
        pixels=torch.randint(0, 256, (*shape, 3, side, side), dtype=torch.uint8),
        action=torch.rand(*shape, ACTION) * 2 - 1,
        next=TensorDict(reward=torch.rand(*shape, 1), batch_size=shape),
        batch_size=shape,
    )
