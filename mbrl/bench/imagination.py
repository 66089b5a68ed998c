"""Imagined steps of iVideoGPT, compared with the published loop with the same weights and with a lower bound.

Lower bound: matmul FLOPs of the weights at the throughput measured for the shapes of one token step, one read of the KV
cache for every token at the measured bandwidth, and FLOPs of the tokenizer's decoder at the throughput of large
products.

At nano size and batch 32, on one thread of a processor with AVX-512 bfloat16, a step takes (the rows "share of a step"
give the shares on this machine):

- a third for attention: with one query per row and head, products are too small for the matrix kernels, which pack the
  keys again for each;
- a third for small operations (norms, rotations, gates, conversions, sampling, activations of the decoder), each
  limited by its launch or by memory;
- a third for the products with weights and the convolutions, which are close to their lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.bench import Row, _published_loop
from mbrl.bench._machine import copy_bandwidth, count_flops, matmul_rate, median_seconds, row, time_shares
from mbrl.bench._models import BASE, NANO, build, starts
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder
from worldmodel.ivideogpt.rollout.frames import imagine

HORIZON = 10
HORIZONS = (5, 10, 20, 40)
BATCHES, REPEATS = {NANO: 32, BASE: 2}, {NANO: 3, BASE: 1}
GOALS = {NANO: "≥ 10", BASE: "≥ 4"}  # of parallel decoding
LARGE_SIDE = 1024  # side of the matrices with which the throughput of large products is measured


def imagine_with_cache(model: IVideoGPT, context: TensorDict, actions: Tensor, decode: bool = True) -> None:
    """The loop of this project.

    Args:
        model: iVideoGPT.
        context: `pixels` uint8 [B, C, 3, R, R].
        actions: [B, H, A].
        decode: whether frames are decoded to pixels.
    """
    state = model.start(context)
    for action in actions.unbind(1):
        state, frame = model.rollouts.advance(state, action)
        if decode:
            model.rollouts.pixels(state, frame.tokens.unsqueeze(1))


def token_evaluations(model: IVideoGPT, horizon: int) -> tuple[int, int]:
    """Tokens of one rollout that pass through the transformer: with the KV cache, and with the prefix re-encoded."""
    layout = model.layout
    reencoded = sum(layout.prefix + layout.stride * (step + 1) for step in range(horizon))
    return layout.prefix + layout.stride * horizon, reencoded


def compare_with_published(name: str) -> list[Row]:
    """Rows of the loops, interleaved: published, ours, ours with parallel decoding; at nano size also undecoded."""
    model, batch, size = build(name, HORIZON + 2), BATCHES[name], name.removeprefix("ivideogpt_")
    parallel, inputs = build(name, HORIZON + 2, parallel=True), starts(model, batch, HORIZON)
    loops: list[Callable[..., object]] = [
        partial(imagine_with_cache, parallel),
        partial(imagine_with_cache, model),
        partial(_published_loop.imagine, model),
    ]
    decoded = (True, False) if name == NANO else (True,)
    calls: list[Callable[[], object]] = [partial(loop, *inputs, decode) for decode in decoded for loop in loops]
    together, ours, theirs, *undecoded = median_seconds(calls, REPEATS[name])
    cached_tokens, reencoded_tokens = token_evaluations(model, HORIZON)
    steps = batch * HORIZON
    return [
        row(f"{size}, batch {batch}: imagined transitions", steps / ours, "1/s"),
        row(f"{size}: imagined transitions, published loop", steps / theirs, "1/s"),
        row(f"{size}: over the published loop", theirs / ours, "×"),
        row(f"{size}: parallel decoding, imagined transitions", steps / together, "1/s"),
        row(f"{size}: parallel decoding, over the published loop", theirs / together, "×", GOALS[name]),
        *(
            row(f"{size}: {how}over the published loop, frames not decoded", undecoded[2] / seconds, "×")
            for how, seconds in zip(("parallel decoding, ", ""), undecoded, strict=False)
        ),
        row(f"{size}: transformer tokens a rollout", cached_tokens, "tokens"),
        row(f"{size}: ... in the published loop", reencoded_tokens, "tokens"),
        row(f"{size}: fewer transformer tokens", reencoded_tokens / cached_tokens, "×"),
    ]


def lower_bound_milliseconds(model: IVideoGPT, batch: int) -> dict[str, float]:
    """Lower bound in milliseconds of one imagined step of `batch` rollouts, by part."""
    context, actions = starts(model, batch, 1)
    decoder = CachedDecoder(model.transformer, torch.float32)  # The FLOP counter sees torch's own products only.
    cache = decoder.encode(model.layout.join(model.start(context).codes), model.max_horizon)
    conditioning = decoder.frame_heads.condition(actions[:, 0], None)
    products = count_flops(partial(imagine, decoder, cache, conditioning, model.rollouts.sampling), ("mm", "addmm"))
    state, imagined = model.rollouts.advance(model.start(context), actions[:, 0])
    decoding = count_flops(partial(model.rollouts.pixels, state, imagined.tokens.unsqueeze(1)))
    passes = 1 if decoder.parallel else model.layout.stride
    cache = state.cache
    read = (cache.prefix_keys.nbytes + cache.prefix_values.nbytes + cache.own.nbytes) * passes
    outputs, width = decoder.layers[0].gate_up.weight.shape
    return {
        "weight matmuls": 1e3 * products / matmul_rate(model.dtype, batch, width, outputs),
        "KV cache read": 1e3 * read / copy_bandwidth(),
        "frame decoded": 1e3 * decoding / matmul_rate(model.dtype, LARGE_SIDE, LARGE_SIDE, LARGE_SIDE),
    }


def step_milliseconds(model: IVideoGPT, batch: int, horizon: int) -> float:
    """Mean milliseconds of one imagined step of a rollout of `horizon` steps, without the start."""
    context, actions = starts(model, batch, horizon)
    state = model.start(context)
    began = time.perf_counter()
    for action in actions.unbind(1):
        state, _ = model.step(state, action)
    return 1e3 * (time.perf_counter() - began) / horizon


def compare_with_lower_bound(parallel: bool) -> list[Row]:
    """Rows of one step at nano size: its lower bound by part, its time, and the shares of its time."""
    model, batch, how = build(parallel=parallel), BATCHES[NANO], "parallel decoding: " * parallel
    parts = lower_bound_milliseconds(model, batch)
    measured = min(step_milliseconds(model, batch, HORIZON) for _ in range(REPEATS[NANO]))
    lower_bound = sum(parts.values())
    context, actions = starts(model, batch, HORIZON)
    state = model.start(context)

    def steps() -> None:
        nonlocal state
        for action in actions.unbind(1):
            state, _ = model.step(state, action)

    return [
        *(row(f"{how}lower bound of a step: {part}", value, "ms") for part, value in parts.items()),
        row(f"{how}lower bound of a step", lower_bound, "ms"),
        row(f"{how}a step", measured, "ms"),
        row(f"{how}a step over its lower bound", measured / lower_bound, "×"),
        *(row(f"{how}share of a step: {part}", 100 * share, "%") for part, share in time_shares(steps).items()),
    ]


def measure_horizons(parallel: bool) -> list[Row]:
    """Rows of the cost of a step in rollouts of several lengths, all with a cache for the longest."""
    model, batch = build(segment_length=max(HORIZONS) + 2, parallel=parallel), BATCHES[NANO]
    how = "parallel decoding: " * parallel
    times = [[step_milliseconds(model, batch, horizon) for horizon in HORIZONS] for _ in range(3)]
    fastest = [min(column) for column in zip(*times, strict=True)]
    rows = [row(f"{how}step of a rollout of {h}", value, "ms") for h, value in zip(HORIZONS, fastest, strict=True)]
    return [
        *rows,
        row(f"{how}step at {HORIZONS[-1]} over step at {HORIZONS[0]}", fastest[-1] / fastest[0], "×", "flat: ≤ 1.1"),
    ]


@torch.no_grad()
def run() -> list[Row]:
    """All rows."""
    return [
        *compare_with_published(NANO),
        *(row for parallel in (False, True) for row in compare_with_lower_bound(parallel)),
        *(row for parallel in (False, True) for row in measure_horizons(parallel)),
        *compare_with_published(BASE),
    ]
