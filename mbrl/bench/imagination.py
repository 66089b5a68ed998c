"""How fast iVideoGPT imagines: through the key/value cache, and re-encoding the prefix for every frame.

Both loops use the same weights, encode the context frames once, sample alike and decode every frame as it comes.
The second is what the published implementation does: a cache within a frame, none from frame to frame.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.resources import files

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite

from worldmodel.ivideogpt.decoding import imagine
from worldmodel.ivideogpt.model import IVideoGPT

BATCH, HORIZON, ACTION, REPEATS = 32, 10, 4, 3
HORIZONS = (5, 10, 20, 40)


def build(name: str = "ivideogpt_nano", segment_length: int = HORIZON + 2) -> IVideoGPT:
    """A configured model with random weights, for segments of that length."""
    config = OmegaConf.load(str(files("configs") / "worldmodel" / f"{name}.yaml"))
    config.segment_length = segment_length
    side = config.tokenizer.resolution
    pixels = Composite(pixels=Bounded(0, 255, (3, side, side), dtype=torch.uint8))
    torch.manual_seed(0)
    make = instantiate(config, _partial_=True)
    return make(observation_spec=pixels, action_spec=Bounded(-1, 1, (ACTION,))).eval()


def inputs(model: IVideoGPT, horizon: int) -> tuple[TensorDict, Tensor]:
    """Random context frames [B, C] and actions [B, H, A]."""
    side = model.tokenizer.resolution
    shape = (BATCH, model.context_length, 3, side, side)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    return TensorDict(pixels=pixels, batch_size=shape[:2]), torch.rand(BATCH, horizon, ACTION) * 2 - 1


def cached(model: IVideoGPT, context: TensorDict, actions: Tensor, decode: bool = True) -> None:
    """The model's own loop; without ``decode`` it stops at the frames' tokens."""
    state = model.start(context)
    for action in actions.unbind(1):
        state, frame = model.rollouts.advance(state, action)
        if decode:
            model.rollouts.pixels(state, frame.tokens.unsqueeze(1))


def reencoded(model: IVideoGPT, context: TensorDict, actions: Tensor, decode: bool = True) -> None:
    """The same, but every frame encodes all tokens before it again."""
    state, layout = model.start(context), model.layout
    tokens, decoder = layout.join(state.codes), state.decoders[0]
    for step, action in enumerate(actions.unbind(1)):
        cache = decoder.encode(tokens, 1, decoder.edges.condition(actions[:, :step], None))
        gain = decoder.edges.condition(action, None)
        new = imagine([decoder], [cache], [gain], model.rollouts.sampling).tokens
        if decode:
            model.rollouts.pixels(state, new.unsqueeze(1))
        slot = tokens.new_full((BATCH, 1), layout.slot)
        tokens = torch.cat([tokens, slot, new], 1)


def token_evaluations(model: IVideoGPT, horizon: int) -> tuple[int, int]:
    """Tokens of a row that pass through the transformer: with the cache, and re-encoding each frame's prefix."""
    layout = model.layout
    through_cache = layout.length(model.context_length + horizon)
    return through_cache, sum(layout.prefix + layout.stride * (step + 1) for step in range(horizon))


def seconds(*calls: Callable[[], object]) -> list[float]:
    """Median wall-clock seconds of each call, interleaved, after one round to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS + 1):
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken[1:]) for taken in times]


def step_milliseconds(model: IVideoGPT, horizon: int) -> float:
    """Median cost of one imagined step of a rollout of ``horizon`` steps, the start left out."""
    context, actions = inputs(model, horizon)
    taken = []
    state = model.start(context)
    for action in actions.unbind(1):
        begin = time.perf_counter()
        state, _ = model.step(state, action)
        taken.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(taken)


@torch.no_grad()
def run() -> list[dict[str, object]]:
    """Rows of name, value, unit and target; nano, batch 32, horizon 10, decoding included."""
    model = build()
    context, actions = inputs(model, HORIZON)
    ours, theirs, ours_tokens, theirs_tokens, whole, start = seconds(
        lambda: cached(model, context, actions),
        lambda: reencoded(model, context, actions),
        lambda: cached(model, context, actions, decode=False),
        lambda: reencoded(model, context, actions, decode=False),
        lambda: model.predict(context, actions),
        lambda: model.start(context),
    )
    few, many = token_evaluations(model, HORIZON)
    steps = BATCH * HORIZON
    rows: list[tuple[str, float, str, str]] = [
        ("imagined transitions", steps / ours, "1/s", "≥ 200 on 2 threads"),
        ("imagined transitions, frames decoded at the end", steps / whole, "1/s", ""),
        ("imagined transitions, prefix re-encoded", steps / theirs, "1/s", ""),
        ("speed-up by the cache", theirs / ours, "×", ""),
        ("speed-up by the cache, frames not decoded", theirs_tokens / ours_tokens, "×", ""),
        ("start: 32 contexts encoded", 1e3 * start, "ms", ""),
        ("transformer token evaluations a rollout", few, "tokens", ""),
        ("transformer token evaluations, prefix re-encoded", many, "tokens", ""),
        ("fewer token evaluations", many / few, "×", "≥ 8"),
    ]
    long = build(segment_length=max(HORIZONS) + model.context_length)
    step_milliseconds(long, HORIZONS[0])  # warms up
    for horizon in HORIZONS:
        rows.append((f"step of a rollout of {horizon}", step_milliseconds(long, horizon), "ms", "flat"))
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True)) for row in rows]
