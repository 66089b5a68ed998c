"""Imagined frames from graphs equal the eager ones; a capture is played by a call that writes the same memory anew."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.pretended_device import GPU, pretended_device
from tests.worldmodel.ivideogpt.test_model import CONTEXT, make, sequences
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.rollout.decoding import Sampling
from worldmodel.ivideogpt.rollout.frames import ImaginedFrame, predict_frame
from worldmodel.ivideogpt.rollout.graphs import KEPT, FrameGraphs
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

PARALLEL = partial(VideoTransformer, width=32, layers=2, heads=2, mlp_width=64, parallel=True)


def tensors(frame: ImaginedFrame) -> list[Tensor]:
    return [frame.tokens, frame.hidden]


class Captures:
    """Plays a capture: the call is made at once, and again at each replay, into the memory of the first result."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, call: Callable[[], ImaginedFrame]) -> tuple[Callable[[], None], ImaginedFrame]:
        self.captured += 1
        result = call()

        def replay() -> None:
            self.replayed += 1
            for mine, new in zip(tensors(result), tensors(call()), strict=True):
                mine.copy_(new)

        return replay, result


def imagining(graphs: FrameGraphs | None) -> list[Tensor]:
    """What two rollouts with forks, a real frame in between and changed weights give."""
    model = build().to(GPU)
    if graphs is not None:
        model.rollouts.predict = graphs
    batch, made = sequences(4).to(GPU), []

    def step(state: Any, number: int) -> Any:
        state, frame = model.rollouts.advance(state, batch["action"][:, number].repeat_interleave(state.rows // 4, 0))
        made.extend([frame.tokens, frame.reward])
        return state

    for _ in range(2):
        torch.manual_seed(5)
        state = model.start(batch[:, :CONTEXT])
        state = step(state, 1)
        one, other = model.fork(state, 2), model.fork(state, 2)
        one, other = step(one, 2), step(other, 3)  # in turn, on the same graph
        twice = batch.repeat_interleave(2, 0)
        one, _ = model.rollouts.observe(one, twice["action"][:, 3], twice["pixels"][:, 0])
        step(one, 1)
        step(other, 1)
        with torch.no_grad():
            for parameter in model.transformer.parameters():
                parameter.mul_(1.3)
    return [tensor.cpu() for tensor in made]


def build() -> IVideoGPT:
    options = {"sampling": Sampling(temperature=1.0), "segment_length": 8}
    return make(parts={"transformer": PARALLEL}, precision="float32", **options).eval()


def test_frames_from_graphs_are_the_eager_ones() -> None:
    with pretended_device():
        captures = Captures()
        expected, found = imagining(None), imagining(FrameGraphs(captures))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    before, after = found[: len(found) // 2], found[len(found) // 2 :]
    assert not all(map(torch.equal, before, after)), "the second rollout sees the changed weights"
    assert captures.captured == 2, "one graph for the rows of the context, one for those of its forks"
    assert captures.replayed == 2 * 6, "all frames, the real one among them"


def test_what_is_captured_neither_waits_for_the_gpu_nor_copies_to_it() -> None:
    with pretended_device() as counts:
        model, seen = build().to(GPU), []

        def counting(*arguments: Any) -> ImaginedFrame:
            before = counts.synchronisations, counts.to_gpu
            frame = predict_frame(*arguments)
            seen.append((counts.synchronisations - before[0], counts.to_gpu - before[1]))
            return frame

        model.rollouts.predict = counting
        batch = sequences(2).to(GPU)
        model.predict(batch[:, :CONTEXT], batch["action"][:, :2])
    assert seen == [(0, 0)] * 2


def test_few_graphs_are_kept_and_none_is_copied_with_its_model() -> None:
    with pretended_device():
        captures = Captures()
        model, batch = build().to(GPU), sequences(KEPT + 1).to(GPU)
        model.rollouts.predict = FrameGraphs(captures)
        for rows in [*range(1, KEPT + 2), KEPT + 1, 1]:  # the newest is known, the oldest no longer
            model.predict(batch[:rows, :CONTEXT], batch["action"][:rows, :1])
        assert captures.captured == KEPT + 2
        twin = copy.deepcopy(model)
        twin.predict(batch[:1, :CONTEXT], batch["action"][:1, :1])
        assert captures.captured == KEPT + 2, "the twin has a capture of its own"


def test_a_cpu_has_no_graphs() -> None:
    model, batch, found = build(), sequences(2), []
    for predict in (predict_frame, FrameGraphs()):  # whose capture needs a GPU
        model.rollouts.predict = predict
        torch.manual_seed(1)
        found.append(model.predict(batch[:, :CONTEXT], batch["action"][:, :1]))
    assert (found[0] == found[1]).all()
