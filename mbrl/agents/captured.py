"""Policy updates as CUDA graphs: one launch an update, where an eager one launches every operation by itself.

A graph reads and writes the memory that it was captured with. Weights, moments and buffers change in place, so that it
goes on with them; a batch is copied to where the graph reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from policies.base import Policy, held_losses, require_finite

WARM_UP = 3  # eager updates before a capture, in which libraries choose kernels and optimisers make their moments

Metrics = dict[str, Tensor]


class Graphs:
    """What captures work on a GPU."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], Metrics]) -> Metrics:
        """Do work on the stream of captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            metrics = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return metrics

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        """Capture work without doing it: what does it, and the result, whose memory is then written anew each time."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = work()
        return graph.replay, result


@dataclass
class _Layout:
    """Batches of one layout.

    Attributes:
        warm: eager updates so far.
        moments: addresses of the optimisers' moments at the last update.
        replay: takes one update on `batch`; None before the capture.
        batch: what the graph reads.
        names: of the metrics.
        values: of the metrics of the last replay.
    """

    warm: int = 0
    moments: tuple[int, ...] = ()
    replay: Callable[[], Any] | None = None
    batch: TensorDictBase | None = None
    names: tuple[str, ...] = ()
    values: Tensor | None = None


class CapturedUpdates:
    """Updates a policy as `policy.update` does, on a GPU from a graph for each layout of batches. A call is one update.

    Args:
        policy: the policy; what its update changes are weights, buffers and moments, in place.
        graphs: makes what captures, at the first batch on a GPU.
    """

    def __init__(self, policy: Policy, graphs: Callable[[], Graphs] = Graphs) -> None:
        self._policy, self._make = policy, graphs
        self._graphs: Graphs | None = None
        self._layouts: dict[Hashable, _Layout] = {}

    def __call__(self, batch: TensorDictBase) -> Metrics:
        """One update on a batch on the policy's device; see `Policy.update`."""
        if self._policy.device.type != "cuda":
            return self._policy.update(batch)
        graphs = self._started()
        leaves = sorted((str(key), value.shape, value.dtype) for key, value in batch.items(True, True))
        layout = self._layouts.setdefault(tuple(leaves), _Layout())
        moments = self._moments()
        if moments != layout.moments:  # loaded, or forgotten: a graph would go on with those of before
            layout.warm, layout.replay, layout.moments = 0, None, moments
        if layout.warm < WARM_UP:
            layout.warm += 1
            return graphs.warm_up(lambda: self._policy.update(batch))
        if layout.replay is None:
            self._capture(layout, batch, graphs)
        assert layout.replay and layout.batch is not None and layout.values is not None
        layout.batch.update_(batch)
        layout.replay()
        metrics = dict(zip(layout.names, layout.values.clone().unbind(), strict=True))
        require_finite({name: value for name, value in metrics.items() if name.endswith("_loss")})
        return metrics

    def _started(self) -> Graphs:
        if self._graphs is None:
            self._graphs = self._make()
            for optimizer in self._policy.optimizers.values():
                for group in optimizer.param_groups:
                    group["capturable"] = True
        return self._graphs

    def _moments(self) -> tuple[int, ...]:
        states = [state for optimizer in self._policy.optimizers.values() for state in optimizer.state.values()]
        return tuple(value.data_ptr() for state in states for value in state.values() if isinstance(value, Tensor))

    def _capture(self, layout: _Layout, batch: TensorDictBase, graphs: Graphs) -> None:
        layout.batch = batch.clone()

        def work() -> Tensor:
            assert layout.batch is not None
            with held_losses():  # a capture must read no value; `__call__` checks the metrics
                metrics = self._policy.update(layout.batch)
            layout.names = tuple(metrics)
            return torch.stack([value.float() for value in metrics.values()])

        layout.replay, layout.values = graphs.capture(work)
