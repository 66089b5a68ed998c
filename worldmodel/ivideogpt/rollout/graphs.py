"""CUDA graphs of imagined frames: one launch a frame instead of one for each operation.

A graph reads and writes the memory that it was captured with. So each graph has its own cache, snapshot of the weights
and inputs. The inputs are copied to it for every frame; cache and weights only if they changed since its last frame.
The tokens that a frame adds to the cache are copied back, so that a state can always continue without its graph.
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

KEPT = 4  # graphs of one model; each holds a copy of a rollout's cache
WARM_UP = 2  # calls before a capture, in which libraries select kernels and allocate memory

Capture = Callable[[Callable[[], ImaginedFrame]], tuple[Callable[[], Any], ImaginedFrame]]


def capture_on_gpu(work: Callable[[], ImaginedFrame]) -> tuple[Callable[[], None], ImaginedFrame]:
    """Capture work as a CUDA graph: returns a function that replays it, and the result, which replays overwrite."""
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
    """Predicts whole frames as `predict_frame`, on a GPU with a CUDA graph for each shape.

    Args:
        capture: captures work as a graph.
    """

    def __init__(self, capture: Capture = capture_on_gpu) -> None:
        self._capture, self._graphs = capture, dict[Hashable, _FrameGraph]()

    def __getstate__(self) -> dict[str, Any]:
        """State without the graphs, which can be neither copied nor sent to another process."""
        return {"_capture": self._capture, "_graphs": {}}

    def __call__(self, decoder: CachedDecoder, cache: KeyValueCache, inputs: Inputs, choice: Choice) -> ImaginedFrame:
        """As `predict_frame`, which is called on a CPU and with dropout, which draws random numbers within the pass."""
        if not cache.own.is_cuda or decoder.dropout:
            return predict_frame(decoder, cache, inputs, choice)
        shape = (cache.forks, cache.prefix_keys.shape, cache.own.shape, cache.own.dtype, cache.own.device)
        key = (shape, choice, torch.are_deterministic_algorithms_enabled())
        graph = self._graphs.pop(key, None)  # inserted again below as the newest
        if graph is None:
            graph = _FrameGraph(decoder, cache, inputs, choice, self._capture)
        self._graphs[key] = graph
        if len(self._graphs) > KEPT:
            del self._graphs[next(iter(self._graphs))]
        return graph(decoder, cache, inputs)


class _FrameGraph:
    """CUDA graph with the memory that it reads and writes; arguments as in `predict_frame`."""

    def __init__(
        self, decoder: CachedDecoder, cache: KeyValueCache, inputs: Inputs, choice: Choice, capture: Capture
    ) -> None:
        self._decoder = _twin(decoder)
        self._cache = replace(cache, **{name: getattr(cache, name).clone() for name in WRITTEN})
        self._inputs = Inputs(*(x.clone() for x in inputs))
        self._weights_of: weakref.ref[CachedDecoder] | None = None
        self._tokens_of: weakref.ref[KeyValueCache] | None = None
        self._filled = -1  # tokens in this cache
        self._replay, self._result = capture(lambda: predict_frame(self._decoder, self._cache, self._inputs, choice))

    def __call__(self, decoder: CachedDecoder, cache: KeyValueCache, inputs: Inputs) -> ImaginedFrame:
        if self._weights_of is None or self._weights_of() is not decoder:
            _copy(self._decoder.tensors(), decoder.tensors())
            self._weights_of = weakref.ref(decoder)
        if self._tokens_of is None or self._tokens_of() is not cache or self._filled != cache.filled:
            _copy([getattr(self._cache, name) for name in WRITTEN], [getattr(cache, name) for name in WRITTEN])
            self._tokens_of = weakref.ref(cache)
        _copy(self._inputs, inputs)
        self._replay()
        cache.own.index_copy_(4, inputs.places, self._cache.own.index_select(4, inputs.places))
        self._filled = cache.filled + len(inputs.places)
        return ImaginedFrame(*(x.clone() for x in self._result))


WRITTEN = ("prefix_keys", "prefix_values", "own")  # the tensors that differ between caches of one shape


def _twin(decoder: CachedDecoder) -> CachedDecoder:
    """Copy of a decoder with its own memory for the tensors that a graph reads."""
    shared = (decoder.embedding, decoder.frame_heads, decoder.queries)
    return copy.deepcopy(decoder, {id(x): x for x in shared} | {id(x): x.clone() for x in decoder.tensors()})


def _copy(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, given in zip(ours, theirs, strict=True):
        mine.copy_(given)
