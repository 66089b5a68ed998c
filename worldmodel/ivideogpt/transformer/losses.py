"""Losses and metrics of the tokenizer, as pure functions. Frames are float in [0, 1], [..., 3, R, R]."""

import torch
from torch import Tensor


def motion_weights(frames: Tensor, still: Tensor, weight: float, scale: float) -> Tensor:
    """Weights [..., 1, R, R] of mean 1 that favour pixels that differ from the same pixel of `still`.

    Before scaling to mean 1 the weight of a pixel is 1 + weight * min(1, |frames - still| / scale), with the difference
    averaged over colours. Otherwise a large, still background outweighs a small gripper (after DWS, arXiv 2502.07825).
    """
    moved = (frames - still).abs().mean(-3, keepdim=True)
    weights = 1.0 + weight * (moved / scale).clamp(max=1.0)
    return weights / weights.mean()


def weighted_error(prediction: Tensor, target: Tensor, weights: Tensor, squared: float = 0.0) -> Tensor:
    """Mean of weights * (|e| + squared * e²), where e is the error of a pixel; weights are broadcast over colours.

    The minimum of |e| alone, as published, is the median: a pixel that the arm covers in fewer than half of the frames
    is predicted as background until the prediction is nearly certain. e² pulls it towards the arm from the start.
    """
    error = (prediction - target).abs()
    return (weights * (error + squared * error.square())).mean()


def psnr(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB over all pixels, or over those where mask [..., 1, R, R] is true."""
    error = (prediction.clamp(0.0, 1.0) - target).square().mean(-3, keepdim=True)
    error = error.mean() if mask is None else (error * mask).sum() / mask.sum().clamp(min=1)
    return -10.0 * torch.log10(error.clamp(min=1e-10))


def occurrences(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, int64 [codebook_size]. `torch.bincount` would wait for the GPU twice."""
    flat = codes.flatten()
    return flat.new_zeros(codebook_size).scatter_add_(0, flat, torch.ones_like(flat))


def perplexity(codes: Tensor, codebook_size: int) -> Tensor:
    """exp of the entropy of the codes' frequencies: the effective number of used codes, 1 to codebook_size."""
    share = occurrences(codes, codebook_size) / codes.numel()
    return torch.exp(-torch.xlogy(share, share).sum())


def sample_frames(frames: Tensor, count: int) -> Tensor:
    """Sample frames of each row without replacement: [B, F, ...] -> [B, min(count, F), ...]."""
    chosen = torch.rand(frames.shape[:2], device=frames.device).argsort(1)[:, :count]
    return frames[torch.arange(len(frames), device=frames.device)[:, None], chosen]
