"""Measures of imagined frames on cases that can be worked out by hand, and against other libraries."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from worldmodel.metrics.images import best_of_samples, frame_scores, frechet_distance, gaussian_distance

SIDE = 16


def flat(*values: int) -> Tensor:
    """One-coloured frames uint8 [len(values), 3, SIDE, SIDE]."""
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE).clone()


def test_squared_error_and_psnr_by_hand() -> None:
    real = flat(0, 100).unsqueeze(0)  # [1, 2, ...]
    imagined = torch.stack([flat(51, 100), flat(255, 151)]).unsqueeze(0)  # [1, 2 samples, 2 frames, ...]
    scores = frame_scores(imagined, real)
    mse = torch.tensor([[[0.04, 0.0], [1.0, 0.04]]])
    torch.testing.assert_close(scores["mse"], mse)
    torch.testing.assert_close(scores["psnr"], -10 * (mse + 1e-8).log10(), atol=1e-4, rtol=0)  # 80 dB where equal


def test_ssim_of_flat_frames_by_hand() -> None:
    """Without any structure only the means' term is left: (2ab + c) / (a² + b² + c), c = 0.01²."""
    scores = frame_scores(flat(51).reshape(1, 1, 1, 3, SIDE, SIDE), flat(102).unsqueeze(0))
    a, b, c = 0.2, 0.4, 1e-4
    assert scores["ssim"].item() == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-4)
    noise = torch.randint(0, 256, (1, 1, 3, 3, SIDE, SIDE), dtype=torch.uint8)
    assert frame_scores(noise, noise[0])["ssim"].tolist() == [[pytest.approx([1.0] * 3)]]


class Brightness:
    """Stands for LPIPS: the difference of mean brightness."""

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.mean((1, 2, 3)) - target.mean((1, 2, 3))).abs()


def test_every_frame_is_held_against_its_own_over_chunks() -> None:
    """[B, K, H] keeps its order also where the frames are more than one chunk."""
    real = flat(*range(90)).unflatten(0, (3, 30))
    offset = torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.uint8).reshape(3, 2, 1, 1, 1, 1)
    scores = frame_scores(real.unsqueeze(1) + offset, real, Brightness())
    assert set(scores) == {"mse", "psnr", "ssim", "lpips"}
    expected = (offset.float() / 255).reshape(3, 2, 1).expand(3, 2, 30)
    torch.testing.assert_close(scores["lpips"], expected, atol=1e-6, rtol=0)


def test_best_of_samples_is_taken_by_video_after_the_mean_over_frames() -> None:
    scores = torch.tensor([[[1.0, 3.0], [0.0, 6.0]], [[8.0, 0.0], [1.0, 1.0]]])  # means 2, 3 and 4, 1
    assert best_of_samples("psnr", scores) == best_of_samples("ssim", scores) == (3.0 + 4.0) / 2
    assert best_of_samples("mse", scores) == best_of_samples("lpips", scores) == (2.0 + 1.0) / 2


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    """Diagonal covariances: |m - n|² + Σ (√a - √b)²."""
    a, b = torch.tensor([4.0, 9.0, 1.0]), torch.tensor([1.0, 16.0, 1.0])
    found = gaussian_distance(torch.zeros(3), a.diag(), torch.tensor([3.0, 0.0, 4.0]), b.diag())
    assert found == pytest.approx(25.0 + 1.0 + 1.0)


def test_frechet_distance_against_scipys_square_root() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) @ rng.normal(size=(6, 6)) + 1
    mean_x, mean_y = x.mean(0), y.mean(0)
    cov_x, cov_y = np.cov(x, rowvar=False, bias=True), np.cov(y, rowvar=False, bias=True)
    root = np.real(scipy.linalg.sqrtm(cov_x @ cov_y))
    expected = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(x)) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_fewer_videos_than_features_is_finite() -> None:
    features = torch.randn(5, 50)
    assert math.isfinite(frechet_distance(features, features + 1))
    assert frechet_distance(features, features + 1) == pytest.approx(50.0, rel=1e-6)


def test_what_cannot_be_compared_is_said() -> None:
    frames = torch.zeros(1, 1, 2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="SSIM needs frames of 11 pixels"):
        frame_scores(frames, frames[0])
    with pytest.raises(ValueError, match=r"are not \[B, K, H"):
        frame_scores(frames, frames[0, :, :1])
    with pytest.raises(ValueError, match="2 videos or more of each kind, not 1 and 5"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
