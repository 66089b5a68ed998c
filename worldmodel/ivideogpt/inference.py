"""World model for inference from weights in the published layout, without layers that the files lack."""

from functools import partial
from pathlib import Path

import torch
from torchrl.data import Bounded, Composite, Unbounded

from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.official import load_tokenizer, load_transformer, trained_with
from worldmodel.ivideogpt.rollout.decoding import Sampling
from worldmodel.ivideogpt.segments import Conditioning
from worldmodel.ivideogpt.training import Optimizers, TrainingPlan


def from_weights(source: str | Path, *, segment_length: int, sampling: Sampling, goal: bool | None = None) -> IVideoGPT:
    """Build a model in eval mode from weights.

    Its context is the initial frame of the episode if the weights were saved by such a model. It reads actions only
    if the file of its transformer has a layer for them, and predicts rewards only if the file has a reward head.
    (`pretrained` of IVideoGPT adds both, for further training.)

    Args:
        source: A folder or a Hugging Face id, see weights.files.find.
        segment_length: T. The horizon is T - C.
        sampling: How codes are sampled.
        goal: Whether the first context frame is a goal. None: as saved with the weights; without a goal for published
            weights, which do not record it.

    Raises:
        FileNotFoundError: There are no weights, see load_tokenizer and load_transformer.
        ValueError: The weights cannot be read, see load_tokenizer and load_transformer.
    """
    tokenizer = load_tokenizer(source)
    transformer = load_transformer(source, layout=tokenizer.layout)
    goal = bool(trained_with(source, "goal")) if goal is None else goal
    initial = bool(trained_with(source, "initial"))
    side, layer, robot = tokenizer.resolution, transformer.action_linear, transformer.proprioception
    no_steps = partial(torch.optim.SGD, lr=0.0)
    observation = Composite(pixels=Bounded(0, 255, (3, side, side), dtype=torch.uint8))
    if robot is not None:
        observation["state"] = Unbounded((robot.size,))
    return IVideoGPT(
        observation,
        Unbounded((0 if layer is None else layer.in_features,)),
        tokenizer=lambda: tokenizer,
        transformer=lambda layout, action_dim: transformer,
        optimizers=Optimizers(tokenizer=no_steps, transformer=no_steps),
        training=TrainingPlan(tokenizer_updates=0, tokenizer_every=0),
        sampling=sampling,
        segment_length=segment_length,
        conditioning=Conditioning(layer is not None, goal, initial),
    ).eval()
