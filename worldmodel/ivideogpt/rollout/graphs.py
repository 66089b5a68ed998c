"""Imagined frames as CUDA graphs: one launch a frame, where the eager pass launches every operation by itself.

A graph reads and writes the memory that it was captured with. So each has caches, a snapshot of the weights and inputs
of its own, and a state's are copied to them: the inputs for every frame, caches and weights where they are other ones
than those of the frame before. What a frame adds to the caches is copied back, so that a state can always go on
without its graph.
"""

import copy
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worldmodel.ivideogpt.rollout.cache import KeyValueCache
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder
from worldmodel.ivideogpt.rollout.frames import Choice, ImaginedFrame, Inputs, predict_frame

KEPT = 4  # graphs of one model: each holds the caches of a rollout once more
WARM_UP = 2  # calls before a capture, in which libraries choose kernels and take memory

Capture = Callable[[Callable[[], ImaginedFrame]], tuple[Callable[[], Any], ImaginedFrame]]


def capture_on_gpu(work: Callable[[], ImaginedFrame]) -> tuple[Callable[[], None], ImaginedFrame]:
    """Capture work as a CUDA graph: what replays it, and the result, whose memory every replay writes anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class FrameGraphs:
    """Predicts whole frames as `predict_frame` does, on a GPU from a graph for each shape that was met.

    Args:
        capture: makes a graph of work to repeat.
    """

    def __init__(self, capture: Capture = capture_on_gpu) -> None:
        self._capture, self._graphs = capture, dict[Hashable, _FrameGraph]()

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs, which can be neither copied nor sent to another process."""
        return {"_capture": self._capture, "_graphs": {}}

    def __call__(
        self, decoders: Sequence[CachedDecoder], caches: Sequence[KeyValueCache], inputs: Inputs, choice: Choice
    ) -> ImaginedFrame:
        """See `predict_frame`, which it is on a CPU, and where published dropout draws numbers within the pass."""
        if not caches[0].own.is_cuda or decoders[0].dropout:
            return predict_frame(decoders, caches, inputs, choice)
        shapes = [(c.forks, c.prefix_keys.shape, c.own.shape, c.own.dtype, c.own.device) for c in caches]
        key = (tuple(shapes), choice, torch.are_deterministic_algorithms_enabled())
        graph = self._graphs.pop(key, None)  # and put in again as the newest
        if graph is None:
            graph = _FrameGraph(decoders, caches, inputs, choice, self._capture)
        self._graphs[key] = graph
        if len(self._graphs) > KEPT:
            del self._graphs[next(iter(self._graphs))]
        return graph(decoders, caches, inputs)


class _FrameGraph:
    """A graph with the memory that it reads and writes; arguments as in `predict_frame`."""

    def __init__(
        self,
        decoders: Sequence[CachedDecoder],
        caches: Sequence[KeyValueCache],
        inputs: Inputs,
        choice: Choice,
        capture: Capture,
    ) -> None:
        self._decoders = [_twin(decoder) for decoder in decoders]
        self._caches = [replace(cache, **{name: getattr(cache, name).clone() for name in WRITTEN}) for cache in caches]
        self._inputs = _copied(inputs)
        self._weights_of: list[weakref.ref[CachedDecoder]] = []
        self._tokens_of: list[weakref.ref[KeyValueCache]] = []
        self._filled = -1  # tokens in these caches
        self._replay, self._result = capture(lambda: predict_frame(self._decoders, self._caches, self._inputs, choice))

    def __call__(
        self, decoders: Sequence[CachedDecoder], caches: Sequence[KeyValueCache], inputs: Inputs
    ) -> ImaginedFrame:
        if not _same(self._weights_of, decoders):
            for ours, theirs in zip(self._decoders, decoders, strict=True):
                _copy(ours.tensors(), theirs.tensors())
            self._weights_of = [weakref.ref(decoder) for decoder in decoders]
        if not _same(self._tokens_of, caches) or self._filled != caches[0].filled:
            for mine, given in zip(self._caches, caches, strict=True):
                _copy([getattr(mine, name) for name in WRITTEN], [getattr(given, name) for name in WRITTEN])
            self._tokens_of = [weakref.ref(cache) for cache in caches]
        _copy(_leaves(self._inputs), _leaves(inputs))
        self._replay()
        for mine, given in zip(self._caches, caches, strict=True):
            given.own.index_copy_(4, inputs.places, mine.own.index_select(4, inputs.places))
        self._filled = caches[0].filled + len(inputs.places)
        tokens, ends, *measures = self._result
        return ImaginedFrame(
            tokens.clone(), [end.clone() for end in ends], *[None if m is None else m.clone() for m in measures]
        )


WRITTEN = ("prefix_keys", "prefix_values", "own")  # what differs from one cache of a shape to another


def _same(known: Sequence[weakref.ref[Any]], given: Sequence[object]) -> bool:
    return len(known) == len(given) and all(ref() is value for ref, value in zip(known, given, strict=True))


def _twin(decoder: CachedDecoder) -> CachedDecoder:
    """A decoder with memory of its own for what a graph reads."""
    shared = (decoder.embedding, decoder.edges, decoder.queries)
    return copy.deepcopy(decoder, {id(x): x for x in shared} | {id(x): x.clone() for x in decoder.tensors()})


def _leaves(inputs: Inputs) -> list[Tensor]:
    return [*inputs.embedded, inputs.uniform, inputs.places]


def _copied(inputs: Inputs) -> Inputs:
    return Inputs(tuple(x.clone() for x in inputs.embedded), inputs.uniform.clone(), inputs.places.clone())


def _copy(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, given in zip(ours, theirs, strict=True):
        mine.copy_(given)
