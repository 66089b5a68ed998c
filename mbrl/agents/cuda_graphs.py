"""Work as CUDA graphs: one launch, where eager work launches every operation by itself.

A graph reads and writes the memory that it was captured with. Weights, moments and buffers change in place, so that it
goes on with them; a batch is copied to where the graph reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from policies.base import Metrics, Policy, held_losses, require_finite

WARM_UP = 3  # eager updates before a capture, in which libraries choose kernels and optimisers make their moments

Result = TypeVar("Result")


class Graphs:
    """Work that can be captured on a GPU."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], Result]) -> Result:
        """Do work on the stream of captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], Result]) -> tuple[Callable[[], Any], Result]:
        """Capture work without doing it: what does it, and the result, whose memory is then written anew each time."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = work()
        return graph.replay, result


class Stacked(NamedTuple):
    """Numbers of a GPU in one tensor, so that one operation copies them all.

    Attributes:
        names: of the numbers.
        values: float32 [N].
    """

    names: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, numbers: Metrics) -> Stacked:
        """Stack 0-d tensors."""
        return cls(tuple(numbers), torch.stack([value.detach().float() for value in numbers.values()]))

    def named(self) -> Metrics:
        """The numbers by name, in memory of their own."""
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))


@dataclass
class _Layout(Generic[Result]):
    """Batches of one layout.

    Attributes:
        warm: eager calls so far.
        places: addresses that the graph depends on.
        replay: does the work on `batch`; None before the capture.
        batch: what the graph reads.
        result: what it writes.
    """

    warm: int = 0
    places: tuple[int, ...] = ()
    replay: Callable[[], Any] | None = None
    batch: TensorDictBase | None = None
    result: Result | None = None


class Captured(Generic[Result]):
    """Does work on batches of a GPU, from a graph for each layout of batches once it is warm.

    Args:
        work: called with a batch; waits for no value, and changes what it changes in place.
        places: addresses of tensors that may be replaced between two calls; a graph of before is then captured anew.
        graphs: makes what captures, at the first call.
    """

    def __init__(
        self,
        work: Callable[[TensorDictBase], Result],
        places: Callable[[], tuple[int, ...]] = tuple,
        graphs: Callable[[], Graphs] = Graphs,
    ) -> None:
        self._work, self._places, self._make = work, places, graphs
        self._graphs: Graphs | None = None
        self._layouts: dict[Hashable, _Layout[Result]] = {}

    def __call__(self, batch: TensorDictBase) -> Result:
        """The result of the work. From a graph it lies in memory that the next call writes anew."""
        self._graphs = graphs = self._graphs or self._make()
        leaves = sorted((str(key), value.shape, value.dtype) for key, value in batch.items(True, True))
        layout = self._layouts.setdefault(tuple(leaves), _Layout())
        places = self._places()
        if places != layout.places:
            layout.warm, layout.replay, layout.places = 0, None, places
        if layout.warm < WARM_UP:
            layout.warm += 1
            return graphs.warm_up(lambda: self._work(batch))
        if layout.replay is None:
            layout.batch = fixed = batch.clone()
            layout.replay, layout.result = graphs.capture(lambda: self._work(fixed))
        assert layout.batch is not None and layout.result is not None
        layout.batch.update_(batch)
        layout.replay()
        return layout.result


class CapturedUpdates:
    """Updates a policy as `policy.update` does, on a GPU from a graph for each layout of batches. A call is one update.

    Args:
        policy: the policy; what its update changes are weights, buffers and moments, in place.
        graphs: makes what captures, at the first batch on a GPU.
    """

    def __init__(self, policy: Policy, graphs: Callable[[], Graphs] = Graphs) -> None:
        self._policy, self._capturable = policy, False
        self._captured = Captured(self._update, self._moments, graphs)

    def __call__(self, batch: TensorDictBase) -> Metrics:
        """One update on a batch on the policy's device; see `Policy.update`."""
        if self._policy.device.type != "cuda":
            return self._policy.update(batch)
        if not self._capturable:
            self._capturable = True
            for optimizer in self._policy.optimizers.values():
                for group in optimizer.param_groups:
                    group["capturable"] = True
        metrics = self._captured(batch).named()
        require_finite({name: value for name, value in metrics.items() if name.endswith("_loss")})
        return metrics

    def _update(self, batch: TensorDictBase) -> Stacked:
        with held_losses():  # a capture must read no value; `__call__` checks the metrics
            return Stacked.of(self._policy.update(batch))

    def _moments(self) -> tuple[int, ...]:
        """Where the moments are: elsewhere once they were loaded or forgotten."""
        states = [state for optimizer in self._policy.optimizers.values() for state in optimizer.state.values()]
        return tuple(value.data_ptr() for state in states for value in state.values() if isinstance(value, Tensor))
