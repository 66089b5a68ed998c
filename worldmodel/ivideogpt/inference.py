"""Weights in the published layout as a world model to imagine with, nothing added to what the files hold."""

from functools import partial
from pathlib import Path

import torch
from torchrl.data import Bounded, Composite, Unbounded

from worldmodel.ivideogpt.decoding import Sampling
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.official import load_tokenizer, load_transformer
from worldmodel.ivideogpt.training import TrainingPlan


def from_weights(source: str | Path, *, segment_length: int, sampling: Sampling) -> IVideoGPT:
    """A model in eval mode that takes actions only where its transformer's file has a layer for them, and predicts
    rewards only where it has a head. (`pretrained` of IVideoGPT adds both, to learn on from there.)

    Args:
        source: a folder or a Hugging Face id, see weights.find. segment_length: T; the horizon is T - C.

    Raises:
        FileNotFoundError, ValueError: one line, as load_tokenizer and load_transformer.
    """
    tokenizer = load_tokenizer(source)
    transformer = load_transformer(source, layout=tokenizer.layout)
    side, layer, robot = tokenizer.resolution, transformer.action_linear, transformer.proprioception
    observation = Composite(pixels=Bounded(0, 255, (3, side, side), dtype=torch.uint8))
    if robot is not None:
        observation["state"] = Unbounded((robot.size,))
    return IVideoGPT(
        observation,
        Unbounded((0 if layer is None else layer.in_features,)),
        tokenizer=lambda: tokenizer,
        transformer=lambda layout, action_dim: transformer,
        tokenizer_optimizer=partial(torch.optim.SGD, lr=0.0),  # never stepped
        transformer_optimizer=partial(torch.optim.SGD, lr=0.0),
        training=TrainingPlan(tokenizer_updates=0, tokenizer_every=0),
        sampling=sampling,
        segment_length=segment_length,
        action_conditioned=layer is not None,
    ).eval()
