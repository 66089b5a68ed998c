"""Rates of the parts of the suite on one GPU, the share of time in which the GPU is busy, and the number of kernels.

A part that launches many small kernels leaves the GPU idle between them. A low share therefore means that launches are
the limit. The rows `ceiling` are the throughput, bandwidth and launch rate of the device.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torchrl.data import Bounded, Composite

from mbrl.agents.cuda_graphs import WARM_UP as EAGER_UPDATES
from mbrl.agents.cuda_graphs import CapturedUpdates
from mbrl.bench import Row, dreamer, encoders, policies, replay, tdmpc2
from mbrl.bench._machine import row
from mbrl.bench._models import BASE, NANO, build, segments, starts
from mbrl.bench.imagination import imagine_with_cache
from mbrl.bench.training import step
from mbrl.build import assemble
from mbrl.errors import UserError
from worldmodel.ivideogpt.rollout.graphs import FrameGraphs, predict_frame

_log = logging.getLogger(__name__)

SECONDS = 1.0  # over which a part is measured
WARM_UP, WARM_SECONDS = EAGER_UPDATES + 2, 2.0  # calls before that, until a graph is captured; fewer of slow parts
HORIZON = 10
TRAINING, IMAGINED = {NANO: (16, 64), BASE: (16,)}, {NANO: (32, 256, 1024), BASE: (32, 256)}  # batch sizes


class Piece(NamedTuple):
    """A part to measure.

    Attributes:
        name: name of its rows.
        call: runs it once.
        amount: units of work in one call.
        unit: unit of the rate.
    """

    name: str
    call: Callable[[], object]
    amount: float = 1.0
    unit: str = "1/s"


def run(device: str = "cuda", seconds: float = SECONDS) -> Iterator[Row]:
    """Rows of every part.

    Args:
        device: device of the models and batches.
        seconds: time for each part; 0 for one call.

    Raises:
        UserError: parts failed; at the end, with their names.
    """
    where = torch.device(device)
    synchronize = partial(torch.cuda.synchronize, where) if where.type == "cuda" else lambda: None
    failed = []
    # What runs do by default comes first: the time may be up before the end.
    for pieces in (ceilings, updates, whole_frames, dreamers, latent_planners, ivideogpt):
        for piece in pieces(where):
            try:
                yield from measure(piece, synchronize, seconds)
            except torch.AcceleratorError:  # after which nothing works on this GPU
                raise
            except RuntimeError:  # A defect of one part, as of a capture, takes no other figures with it.
                _log.exception("%s", piece.name)
                failed.append(piece.name)
    if failed:
        raise UserError(f"{len(failed)} parts failed: {'; '.join(failed)}")


def measure(piece: Piece, synchronize: Callable[[], None], seconds: float) -> Iterator[Row]:
    """Rows of a part: its rate and, on a GPU, the share of its time in kernels and their number per call."""
    calls, began = 0, time.perf_counter()
    while seconds and calls < WARM_UP and (calls == 0 or time.perf_counter() - began < WARM_SECONDS):
        piece.call()
        synchronize()
        calls += 1
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        piece.call()
        calls += 1
    synchronize()
    taken = (time.perf_counter() - began) / calls
    yield row(piece.name, piece.amount / taken, piece.unit)
    if torch.cuda.is_available():
        busy, kernels = kernels_of(piece.call, synchronize)
        yield row(f"{piece.name}: GPU busy", 100 * busy / taken, "%")
        yield row(f"{piece.name}: kernels", kernels, "kernels")


def kernels_of(call: Callable[[], object], synchronize: Callable[[], None]) -> tuple[float, int]:
    """Seconds in the kernels of one call, and their number."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        synchronize()
    kernels = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(event.self_device_time_total for event in kernels) / 1e6, len(kernels)


def ceilings(device: torch.device) -> Iterator[Piece]:
    """Matrix products, copies and launches."""
    side = 8192 if device.type == "cuda" else 64
    for dtype in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        work = 2 * side**3 / 1e12
        yield Piece(f"ceiling: {str(dtype)[6:]} product of {side}", partial(torch.mm, left, right), work, "TFLOP/s")
    source = torch.ones(side**2 * 16, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    yield Piece("ceiling: copy on the device", partial(target.copy_, source), 2 * len(source) / 1e9, "GB/s")
    batch = torch.ones(256 * 18 * 64 * 64, dtype=torch.uint8)
    yield Piece("ceiling: a batch of frames to the device", partial(batch.to, device), len(batch) / 1e9, "GB/s")
    if device.type == "cuda":
        pinned = batch.pin_memory()
        yield Piece("ceiling: the same, pinned", partial(pinned.to, device), len(batch) / 1e9, "GB/s")
    one = torch.ones(8, device=device)
    yield Piece("ceiling: launches of a small kernel", lambda: [one.add_(1) for _ in range(1000)], 1000)
    yield Piece("ceiling: reading a number", lambda: float(one[0]))


def updates(device: torch.device) -> Iterator[Piece]:
    """Model-free updates, on a batch on the device, and with sampling and the copy to the device."""
    with tempfile.TemporaryDirectory() as folder:
        buffers = {
            "": replay.filled_buffer(Path(folder) / "auto", "auto", device),
            ", records on the CPU": replay.filled_buffer(Path(folder) / "cpu", "cpu", device),
        }
        for name, size in (encoders.PUBLISHED, encoders.CPU):
            policy, batch = encoders.build(name).to(device), encoders.random_batch(size).to(device)
            yield Piece(f"DrQ-v2 update, {name}, batch {size}", partial(policy.update, batch))
            captured = partial(CapturedUpdates(policy), batch)
            yield Piece(f"DrQ-v2 update, {name}, batch {size}, from CUDA graphs", captured)
            for where, frames in buffers.items():
                yield Piece(f"sampling {size} transitions of frames{where}", partial(frames.transitions, size))
                drawn = partial(_draw_and_update, policy, frames, size, device)
                yield Piece(f"DrQ-v2 update, {name}, batch {size}, with sampling{where}", drawn)
    states = policies.filled_replay(device)
    for name in ("sac", "sac_bro", "sac_simba"):
        sac, size = policies.build(name, Bounded(-1.0, 1.0, (policies.ACTIONS,))).to(device), policies.BATCH
        batch = states.transitions(size).to(device)
        yield Piece(f"SAC update, {name}, batch {size}", partial(sac.update, batch))
        captured = partial(CapturedUpdates(sac), batch)
        yield Piece(f"SAC update, {name}, batch {size}, from CUDA graphs", captured)
        drawn = partial(_draw_and_update, sac, states, size, device)
        yield Piece(f"SAC update, {name}, batch {size}, with sampling", drawn)


def _draw_and_update(policy: Any, source: Any, size: int, device: torch.device) -> None:
    policy.update(source.transitions(size).to(device))


def dreamers(device: torch.device) -> Iterator[Piece]:
    """DreamerV3 updates, with sampling."""
    for key, spec in dreamer.OBSERVATIONS.items():
        for precision in ("float32", "bfloat16"):
            config = dreamer.compose_for(key)
            config.agent.policy.world_model.precision = precision
            for captured, ending in ((False, ""), (True, ", from CUDA graphs")):
                config.agent.policy.cuda_graphs = captured
                update, _ = dreamer.learner_update(config, Composite({key: spec}), device)
                yield Piece(f"DreamerV3 update from {key}, {precision}{ending}", update)


def latent_planners(device: torch.device) -> Iterator[Piece]:
    """TD-MPC2 from state: updates, with sampling, and plans."""
    states = policies.filled_replay(device)
    for captured, ending in ((False, ""), (True, ", from CUDA graphs")):
        config = tdmpc2.composed(f"agent.policy.cuda_graphs={captured}")
        policy = tdmpc2.build(config).to(device)
        learner = assemble(config, policy).learner
        assert learner is not None
        yield Piece(f"TD-MPC2 update{ending}", partial(learner.update, states, 0.0))
    yield Piece("TD-MPC2 plan", tdmpc2.planned(policy))


def ivideogpt(device: torch.device) -> Iterator[Piece]:
    """Training steps and imagined transitions of iVideoGPT."""
    for size in (NANO, BASE):
        name, model = size.removeprefix("ivideogpt_"), build(size).to(device)
        for batch in TRAINING[size]:
            data = segments(model, batch).to(device)
            for part in ("tokenizer", "transformer"):
                yield Piece(f"{name}: {part} step, batch {batch}", partial(step, model, part, data))
        for batch in IMAGINED[size]:
            context, actions = starts(model.eval(), batch, HORIZON)
            for decode in (True, False):
                ending = "" if decode else ", frames not decoded"
                call = partial(imagine_with_cache, model, context.to(device), actions.to(device), decode)
                yield Piece(f"{name}: imagined transitions, batch {batch}{ending}", call, batch * HORIZON)


def whole_frames(device: torch.device) -> Iterator[Piece]:
    """Imagined transitions of iVideoGPT nano with parallel decoding, not decoded to pixels, eager and from graphs."""
    model = build(NANO, parallel=True).to(device)
    for batch in IMAGINED[NANO]:
        context, actions = starts(model, batch, HORIZON)
        call = partial(imagine_with_cache, model, context.to(device), actions.to(device), False)
        for name, predict in (("eager", predict_frame), ("from CUDA graphs", FrameGraphs())):
            model.rollouts.predict = predict
            yield Piece(f"nano, parallel decoding, {name}: imagined transitions, batch {batch}", call, batch * HORIZON)
