"""Weights in the published layout as a world model to imagine with, nothing added to what the files hold."""

from functools import partial
from pathlib import Path

import torch
from torchrl.data import Bounded, Composite, Unbounded

from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.official import further_members, load_tokenizer, load_transformer, wants_goal
from worldmodel.ivideogpt.rollout.decoding import Sampling
from worldmodel.ivideogpt.training import TrainingPlan


def from_weights(source: str | Path, *, segment_length: int, sampling: Sampling, goal: bool | None = None) -> IVideoGPT:
    """A model in eval mode that takes actions only where its transformer's file has a layer for them, and predicts
    rewards only where it has a head. (`pretrained` of IVideoGPT adds both, to learn on from there.)

    Args:
        source: a folder or a Hugging Face id, see weights.find. segment_length: T; the horizon is T - C.
        goal: whether the first context frame is a goal; None: as the files say (the published ones do not).

    Raises:
        FileNotFoundError, ValueError: one line, as load_tokenizer and load_transformer.
    """
    tokenizer = load_tokenizer(source)
    transformer = load_transformer(source, layout=tokenizer.layout)
    others = [load_transformer(member, layout=tokenizer.layout) for member in further_members(source)]
    waiting = iter([transformer, *others])
    side, layer, robot = tokenizer.resolution, transformer.action_linear, transformer.proprioception
    observation = Composite(pixels=Bounded(0, 255, (3, side, side), dtype=torch.uint8))
    if robot is not None:
        observation["state"] = Unbounded((robot.size,))
    return IVideoGPT(
        observation,
        Unbounded((0 if layer is None else layer.in_features,)),
        tokenizer=lambda: tokenizer,
        transformer=lambda layout, action_dim: next(waiting),
        tokenizer_optimizer=partial(torch.optim.SGD, lr=0.0),  # never stepped
        transformer_optimizer=partial(torch.optim.SGD, lr=0.0),
        training=TrainingPlan(tokenizer_updates=0, tokenizer_every=0),
        sampling=sampling,
        segment_length=segment_length,
        ensemble=1 + len(others),
        action_conditioned=layer is not None,
        goal_conditioned=bool(wants_goal(source)) if goal is None else goal,
    ).eval()
