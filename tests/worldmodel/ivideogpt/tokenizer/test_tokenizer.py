"""The compressive tokenizer: sizes, caching, learning, and errors in one line."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from worldmodel.ivideogpt.objectives import tokenizer_losses
from worldmodel.ivideogpt.tokenizer.layers import fold, unfold
from worldmodel.ivideogpt.tokenizer.settings import (
    AutoencoderSizes,
    Codebooks,
    CrossAttentionSizes,
    MovingAverage,
    StaticScene,
    TokenizerLoss,
)
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.transformer.losses import motion_weights, perplexity, psnr, sample_frames, weighted_error

NETS = AutoencoderSizes((8, 16), layers_per_block=1, latent_channels=8, norm_groups=4)
CROSS = CrossAttentionSizes(max_resolution=8, norm_groups=4, heads=2)
SMALL: dict[str, Any] = {
    "resolution": 16,
    "patch": 4,
    "autoencoder": NETS,
    "cross_attention": CROSS,
    "codebooks": Codebooks(32, 16),
}
NANO: dict[str, Any] = {
    **SMALL,
    "autoencoder": replace(NETS, stem_patch=2),
    "cross_attention": replace(CROSS, dropout=0.0),
    "codebooks": Codebooks(32, 16, 4, commitment=0.05, moving_average=MovingAverage(0.99, 0.05)),
    "static_scene": StaticScene(background_batches=3, copy_gate=True),
    "loss": TokenizerLoss(motion_weight=10.0, squared_weight=4.0),
}


def small(**options: Any) -> CompressiveTokenizer:
    torch.manual_seed(0)
    return CompressiveTokenizer(**{**SMALL, **options})


@settings(max_examples=20, deadline=None)
@given(
    levels=st.integers(1, 3),
    stem=st.integers(1, 3),
    patch=st.integers(1, 3),
    places=st.integers(1, 3),
    context=st.integers(1, 3),
    gate=st.booleans(),
)
def test_grids_derive_from_sizes(levels: int, stem: int, patch: int, places: int, context: int, gate: bool) -> None:
    resolution = places * patch * stem * 2 ** (levels - 1)
    made = CompressiveTokenizer(
        resolution=resolution,
        context_length=context,
        patch=patch,
        autoencoder=replace(NETS, block_out_channels=(8,) * levels, stem_patch=stem),
        cross_attention=CROSS,
        codebooks=Codebooks(32, 16),
        static_scene=StaticScene(copy_gate=gate),
    ).eval()
    assert made.context_tokens == (places * patch) ** 2
    assert made.dynamics_tokens == places**2
    frames = torch.rand(2, context + 1, 3, resolution, resolution)
    codes, features = made.encode_context(frames[:, :context])
    dynamics = made.encode_dynamics(frames[:, context:], features)
    assert codes.shape == (2, context, made.context_tokens) and codes.dtype == torch.int64
    assert dynamics.shape == (2, 1, made.dynamics_tokens) and int(dynamics.max()) < made.dynamics_codes
    decoded = made.context_features_for_decoder(codes)
    assert decoded.frames.shape == frames[:, :context].shape
    assert made.decode_dynamics(dynamics, decoded).shape == frames[:, context:].shape


@pytest.mark.parametrize("sizes", [SMALL, NANO], ids=["published", "nano"])
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(sizes: dict[str, Any]) -> None:
    made = small(**sizes)
    frames = torch.rand(3, 6, 3, 16, 16)
    made(frames)  # so that running statistics are not those of a new model
    made.eval()
    full, context, changes = made(frames)
    codes, features = made.encode_context(frames[:, :2])
    dynamics = made.encode_dynamics(frames[:, 2:], features)
    assert torch.equal(codes, context.codes) and torch.equal(dynamics, changes.codes)
    decoder = made.context_features_for_decoder(codes, frames[:, :2])
    together = made.decode_dynamics(dynamics, decoder)
    alone = torch.cat([made.decode_dynamics(dynamics[:, k : k + 1], decoder) for k in range(4)], 1)
    torch.testing.assert_close(torch.cat([decoder.frames, together], 1), full, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0.0)


@torch.no_grad()
def test_a_closed_gate_copies_the_last_context_frame() -> None:
    made = small(**NANO).eval()
    made.cond_decoder.conv_out.weight.zero_()
    made.cond_decoder.conv_out.bias.zero_()
    made.cond_decoder.conv_out.bias[-(made.stem_patch**2) :] = -50.0  # the gate's channels stand last
    frames = torch.rand(2, 3, 3, 16, 16)
    codes, features = made.encode_context(frames[:, :2])
    dynamics = made.encode_dynamics(frames[:, 2:], features)
    copied = made.decode_dynamics(dynamics, made.context_features_for_decoder(codes, frames[:, :2]))
    unpainted = made.context_features_for_decoder(codes, frames[:, :2], painted=False)
    assert torch.equal(made.decode_dynamics(dynamics, unpainted), copied)
    assert torch.equal(unpainted.frames, frames[:, :2])
    torch.testing.assert_close(copied, frames[:, 1:2])
    decoded = made.context_features_for_decoder(codes)
    torch.testing.assert_close(made.decode_dynamics(dynamics, decoded), decoded.frames[:, 1:2])


@pytest.mark.learns
@pytest.mark.parametrize("sizes", [SMALL, NANO], ids=["published", "nano"])
def test_overfits_one_batch(sizes: dict[str, Any]) -> None:
    """A square that moves over a still background: both losses fall to a fraction."""
    made = small(**sizes)
    frames = torch.rand(4, 1, 3, 1, 1).expand(4, 4, 3, 16, 16).clone()
    for row in range(4):
        for t in range(4):
            frames[row, t, :, 2 * row : 2 * row + 4, 3 * t : 3 * t + 4] = 1.0 - frames[row, t, :, :1, :1]
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    first = tokenizer_losses(made, frames)
    for _ in range(120):
        losses = tokenizer_losses(made, frames)
        if all(losses[name] < 0.4 * first[name] for name in ("context_error", "future_error")):
            return
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    pytest.fail(f"120 updates: {first} became {losses}")


def test_background_is_the_mean_of_the_first_training_batches() -> None:
    made = small(**NANO)
    batches = torch.rand(5, 2, 4, 3, 16, 16)
    for batch in batches:
        tokenizer_losses(made, batch)
    torch.testing.assert_close(made.background, batches[:3].mean((0, 1, 2)))
    tokenizer_losses(made.eval(), batches[0])
    torch.testing.assert_close(made.background, batches[:3].mean((0, 1, 2)))


def test_losses_add_up_and_only_the_sum_carries_a_gradient() -> None:
    cross, weights = replace(CROSS, dropout=0.0), TokenizerLoss(motion_weight=5.0, perceptual_weight=2.0)
    made = small(cross_attention=cross, loss=weights)
    frames = torch.rand(2, 5, 3, 16, 16)
    out = tokenizer_losses(made, frames, samples=2, perceptual=lambda a, b: (a - b).square().mean())
    alike = tokenizer_losses(made, frames, perceptual=lambda ours, real: ours.new_tensor(float(len(real))))
    assert float(alike["perceptual"]) == weights.perceptual_weight * len(frames) * frames.shape[1]  # context + future
    parts = ["context_error", "future_error", "context_commitment", "dynamics_commitment", "perceptual"]
    torch.testing.assert_close(out["loss"], sum(out[name] for name in parts))
    assert out["loss"].requires_grad and not any(v.requires_grad for k, v in out.items() if k != "loss")
    assert all(v.dim() == 0 for v in out.values())
    output, *_ = made(frames[:, :3])
    assert output.shape == (2, 3, 3, 16, 16)


def test_gradients_reach_every_parameter() -> None:
    made = small(**{**NANO, "codebooks": replace(NANO["codebooks"], moving_average=None)})
    tokenizer_losses(made, torch.rand(4, 4, 3, 16, 16))["loss"].backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


def test_published_files_load_into_a_tokenizer_with_revival() -> None:
    plain, reviving = small(), small(codebooks=Codebooks(32, 16, moving_average=MovingAverage(revive_below=0.1)))
    reviving.load_state_dict(plain.state_dict())
    assert reviving.quantize.usage.min() == 1.0
    before = reviving.quantize.embedding.weight.clone()
    tokenizer_losses(reviving, torch.rand(2, 3, 3, 16, 16))
    unmoved = (reviving.quantize.embedding.weight - before).abs().amax(1) < 1e-6
    assert unmoved.any()  # a codebook that counts as used is not seeded anew


def test_sampled_frames_are_of_their_row_and_differ() -> None:
    torch.manual_seed(0)
    frames = torch.arange(12).view(2, 6)
    seen = [sample_frames(frames, 3) for _ in range(50)]
    for sample in seen:
        assert (sample // 6 == torch.tensor([[0], [1]])).all()
        assert all(len(set(row.tolist())) == 3 for row in sample)
    assert {int(x) for sample in seen for x in sample.flatten()} == set(range(12))
    assert sorted(sample_frames(frames, 9)[0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_motion_weights_by_hand() -> None:
    still = torch.zeros(3, 2, 2)
    frames = still.clone()
    frames[:, 0, 0] = 0.05  # half of the scale
    frames[0, 1, 1] = 0.9  # mean over colours 0.3: beyond the scale
    raw = torch.tensor([[[1.0 + 0.5 * 4.0, 1.0], [1.0, 1.0 + 4.0]]])
    weights = motion_weights(frames, still, weight=4.0, scale=0.1)
    torch.testing.assert_close(weights, raw / raw.mean())
    torch.testing.assert_close(motion_weights(frames, still, 0.0, 0.1), torch.ones(1, 2, 2))
    torch.testing.assert_close(weighted_error(frames, still, weights), (weights * frames).mean())
    both = (weights * (frames + 2.0 * frames**2)).mean()
    torch.testing.assert_close(weighted_error(frames, still, weights, squared=2.0), both)


def test_psnr_and_perplexity_by_hand() -> None:
    target = torch.zeros(1, 3, 2, 2)
    prediction = torch.full_like(target, 0.1)
    assert float(psnr(prediction, target)) == pytest.approx(20.0, abs=1e-4)
    prediction[..., 0, 0] = 1.0
    mask = torch.tensor([[[[True, False], [False, False]]]])
    assert float(psnr(prediction, target, mask)) == pytest.approx(0.0, abs=1e-4)
    assert float(psnr(prediction, target, ~mask)) == pytest.approx(20.0, abs=1e-4)
    assert float(perplexity(torch.tensor([0, 1, 2, 3]), 8)) == pytest.approx(4.0, abs=1e-4)
    assert float(perplexity(torch.tensor([5, 5]), 8)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small(resolution=65),
            "resolution 65 does not divide .* multiple of 8, such as tokenizer.resolution=64",
        ),
        (lambda: small(resolution=0), "resolution and tokenizer.patch must be positive, not 0"),
        (lambda: small(patch=3), "3x3 patches"),
        (lambda: small(context_length=0), "context_length must be at least 1"),
        (
            lambda: small(autoencoder=replace(NETS, norm_groups=5)),
            "not divisible by tokenizer.autoencoder.norm_groups 5",
        ),
        (lambda: small(cross_attention=replace(CROSS, norm_groups=7)), "not divisible .*cross_attention.norm_groups 7"),
        (lambda: small(cross_attention=replace(CROSS, heads=3)), "not divisible .*cross_attention.heads 3"),
        (lambda: small(codebooks=Codebooks(0, 16)), "at least one code"),
        (lambda: AutoencoderSizes(()), "block_out_channels is empty"),
        (lambda: AutoencoderSizes(layers_per_block=0), "autoencoder.layers_per_block must be at least 1, not 0"),
        (lambda: CrossAttentionSizes(heads=0), "cross_attention.heads must be at least 1, not 0"),
        (lambda: MovingAverage(revive_below=1.0), "revive_below and decay must be in"),
        (lambda: MovingAverage(decay=-0.1), "revive_below and decay must be in"),
        (lambda: MovingAverage(warmup=5), r"warmup \(5\) needs revive_below > 0"),
    ],
)
def test_impossible_sizes_are_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_wrong_frames_are_one_line() -> None:
    made = small()
    with pytest.raises(ValueError, match=r"frames must be float \[B, T, 3, 16, 16\]"):
        made.encode_context(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"not torch.float32 \[1, 2, 3, 32, 32\]"):
        made.encode_context(torch.zeros(1, 2, 3, 32, 32))
    with pytest.raises(ValueError, match="3 context frames were given: context_length is 2"):
        made.encode_context(torch.zeros(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="more than context_length 2 are needed"):
        made(torch.zeros(1, 2, 3, 16, 16))


@pytest.mark.parametrize("side", [1, 2, 4])
def test_folding_is_pixel_unshuffle(side: int) -> None:
    maps = torch.randn(2, 3, 8, 4)
    folded = fold(maps, side)
    assert torch.equal(folded, F.pixel_unshuffle(maps, side))
    assert torch.equal(unfold(folded, side), maps)
