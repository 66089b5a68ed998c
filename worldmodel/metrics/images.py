"""Metrics of imagined frames: MSE, PSNR, SSIM and LPIPS of each frame, best of samples, and the distance of FVD.

B videos, K samples of each, H frames, R resolution, D features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from worldmodel.ivideogpt.tokenizer.perceptual import PerceptualLoss

HIGHER_IS_BETTER = {"psnr", "ssim"}
PSNR_FLOOR = 1e-8  # added to the squared error, as published: equal frames have 80 dB
SSIM_SIDE = 11  # side of SSIM's window, in pixels
CHUNK = 64  # frames compared at a time


class Distance(Protocol):
    """Distance [M] of frames [M, 3, R, R] in [0, 1], such as LPIPS."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor: ...


def load_lpips(paths: Sequence[Path]) -> PerceptualLoss:
    """Read LPIPS (VGG16) from the user's files, see PerceptualLoss.from_files."""
    return PerceptualLoss.from_files(*paths)


@torch.no_grad()
def frame_scores(imagined: Tensor, real: Tensor, lpips: Distance | None = None) -> dict[str, Tensor]:
    """Scores of each imagined frame against the real one.

    Args:
        imagined: uint8 [B, K, H, 3, R, R]. real: uint8 [B, H, 3, R, R].

    Returns:
        "mse" (pixels in [0, 1]), "psnr" (dB), "ssim" and, if `lpips` is given, "lpips": float32 [B, K, H].
    """
    if imagined.shape[:1] + imagined.shape[2:] != real.shape:
        raise ValueError(f"imagined frames {list(imagined.shape)} are not [B, K, H, ..] of {list(real.shape)}")
    if real.shape[-1] < SSIM_SIDE:
        raise ValueError(f"SSIM needs frames of {SSIM_SIDE} pixels a side or more, not {real.shape[-1]}")
    targets = real.unsqueeze(1).expand_as(imagined).flatten(0, 2)
    pairs = zip(imagined.flatten(0, 2).split(CHUNK), targets.split(CHUNK), strict=True)
    parts = [_scores(a.float() / 255, b.float() / 255, lpips) for a, b in pairs]
    return {name: torch.cat([part[name] for part in parts]).unflatten(0, imagined.shape[:3]) for name in parts[0]}


def _scores(imagined: Tensor, real: Tensor, lpips: Distance | None) -> dict[str, Tensor]:
    """Scores [M] of frames [M, 3, R, R] in [0, 1]."""
    count = len(real)
    mse = mean_squared_error(imagined.flatten(1).T, real.flatten(1).T, num_outputs=count)
    decibel = peak_signal_noise_ratio(imagined, real, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(imagined, real, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    floored = -10 * (10 ** (-decibel / 10) + PSNR_FLOOR).log10()
    scores = {"mse": mse.reshape(count), "psnr": floored.reshape(count), "ssim": ssim.reshape(count)}
    return scores if lpips is None else scores | {"lpips": lpips.distance(imagined, real)}


def best_of_samples(name: str, scores: Tensor) -> Tensor:
    """Best of K samples, as published: 0-d mean over videos of the score of a video's best sample.

    The score of a sample is the mean over its frames of `scores` [B, K, H]; each metric has its own best sample.
    """
    videos = scores.mean(-1)
    return (videos.amax(1) if name in HIGHER_IS_BETTER else videos.amin(1)).mean()


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two sets of features [., D]; FVD if these are I3D's logits.

    Covariances are divided by the count, not by the count - 1, as published. Computed in float64.
    """
    if len(real) < 2 or len(generated) < 2:
        counts = f"{len(real)} and {len(generated)}"
        raise ValueError(f"a Fréchet distance needs 2 videos or more of each kind, not {counts}")
    moments = []
    for features in (real.double(), generated.double()):
        mean = features.mean(0)
        moments += [mean, (features - mean).T @ (features - mean) / len(features)]
    return gaussian_distance(*moments)


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |m - n|² + tr(A + B - 2 (A B)^½)."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # A½ B A½ is symmetric and has the eigenvalues of A B
    product = torch.linalg.eigvalsh(root @ other_covariance.double() @ root).clamp(min=0).sqrt().sum()
    trace = covariance.trace() + other_covariance.trace()
    return float((mean - other_mean).double().square().sum() + trace - 2 * product)
