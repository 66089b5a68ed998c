"""The probe of positions: it finds a square in pictures it has not seen."""

import pytest
import torch
from torch import Tensor

from worldmodel.metrics.probe import fit_probe

SIDE = 32


def squares(count: int) -> tuple[Tensor, Tensor]:
    """Pictures of a white square on noise, and where its centre is in units of 10 pixels: x, y."""
    corners = torch.randint(0, SIDE - 6, (count, 2))
    frames = torch.randint(0, 60, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    for frame, (x, y) in zip(frames, corners.tolist(), strict=True):
        frame[:, y : y + 6, x : x + 6] = 255
    return frames, (corners + 3) / 10


@pytest.mark.slow
def test_it_reads_what_it_has_not_seen() -> None:
    torch.manual_seed(0)
    frames, positions = squares(400)
    ticks: list[int] = []
    before = torch.get_rng_state()
    probe = fit_probe(frames[:300], positions[:300], updates=120, on_update=lambda: ticks.append(1))
    assert torch.equal(torch.get_rng_state(), before) and len(ticks) == 120
    found = probe.read(frames[300:].unflatten(0, (20, 5)))
    assert found.shape == (20, 5, 2)
    error = (found.flatten(0, 1) - positions[300:]).norm(dim=-1).mean()
    guess = (positions[300:] - positions[:300].mean(0)).norm(dim=-1).mean()
    assert error < 0.15 * guess


def test_the_same_seed_gives_the_same_probe() -> None:
    frames, positions = squares(20)
    first, second, other = (fit_probe(frames, positions, updates=3, seed=seed).read(frames) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
