"""Decoding in bfloat16, whose weights are laid out otherwise, and contexts encoded in groups of rows."""

import pytest
import torch
from torch import Tensor

from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.rollout import decoding
from worldmodel.ivideogpt.rollout.cache import KeyValueCache
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder, Sampling
from worldmodel.ivideogpt.rollout.frames import imagine as together
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

LAYOUT = TokenLayout(context_codes=6, dynamics_codes=9, context_tokens=4, dynamics_tokens=3, context_length=2)
GREEDY = Sampling(temperature=0.0)


def make() -> VideoTransformer:
    torch.manual_seed(0)
    model = VideoTransformer(LAYOUT, 2, width=32, layers=2, heads=2, mlp_width=48)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)  # norms around 1, none of them 1
    return model.eval()


def imagine(dtype: torch.dtype, rows: int, frames: int) -> tuple[Tensor, Tensor]:
    """Tokens [R, H, n] and the frames' final hidden states [R, H, D]."""
    decoder = CachedDecoder(make(), dtype)
    torch.manual_seed(1)
    cache = decoder.encode(LAYOUT.join(torch.randint(0, 6, (rows, 2, 4))), frames)
    actions = torch.randn(rows, frames, 2)
    made = [together(decoder, cache, decoder.frame_heads.condition(a, None), GREEDY) for a in actions.unbind(1)]
    return torch.stack([frame.tokens for frame in made], 1), torch.stack([frame.hidden for frame in made], 1)


def test_bfloat16_follows_float32() -> None:
    tokens, ends = imagine(torch.float32, 64, 1)
    rounded_tokens, rounded_ends = imagine(torch.bfloat16, 64, 1)
    same = (tokens == rounded_tokens).all(-1)
    assert float(same.float().mean()) > 0.85  # a near tie may fall the other way
    torch.testing.assert_close(rounded_ends[same], ends[same], atol=0.15, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_of_rows_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, ends = imagine(dtype, 5, 3)
    monkeypatch.setattr(decoding, "CACHED_TOKENS", 2 * LAYOUT.prefix)  # groups of 2, 2 and 1
    grouped_tokens, grouped_ends = imagine(dtype, 5, 3)
    assert torch.equal(tokens, grouped_tokens)
    torch.testing.assert_close(ends, grouped_ends, atol=1e-5 if dtype == torch.float32 else 0.15, rtol=0.05)


def test_places_not_yet_filled_are_never_read() -> None:
    expected, _ = imagine(torch.float32, 3, 2)
    decoder = CachedDecoder(make(), torch.float32)
    torch.manual_seed(1)
    contexts, actions = torch.randint(0, 6, (3, 2, 4)), torch.randn(3, 2, 2)
    cache = decoder.encode(LAYOUT.join(contexts), 4)
    cache.own.fill_(1e3)  # finite, so that what is hidden weighs exactly 0
    made = [together(decoder, cache, decoder.frame_heads.condition(a, None), GREEDY) for a in actions.unbind(1)]
    assert torch.equal(torch.stack([frame.tokens for frame in made], 1), expected)


@pytest.mark.parametrize("forks", [1, 3])
def test_places_not_yet_filled_change_no_bit_of_several_tokens(forks: int) -> None:
    results = []
    for room in (40, 170):
        generator = torch.Generator().manual_seed(2)
        cache = KeyValueCache.allocate(1, 2, 4, 64, prefix=129, room=room, like=torch.empty(0))
        for context in (cache.prefix_keys, cache.prefix_values):
            context.normal_(generator=generator)
        cache = cache.fork(forks)
        frames = []
        for first in (0, 17):
            qkv = torch.randn(2 * forks, 17, 3, 4, 64, generator=generator)
            frames.append(cache.attend(0, qkv, torch.arange(first, first + 17), 0.0))
        results.append(torch.cat(frames, 1))
    assert torch.equal(*results)
