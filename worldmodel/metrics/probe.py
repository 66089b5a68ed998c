"""Position probe: a small network, fitted to real frames, that reads the hand's position from imagined frames."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 64
WIDTHS = (16, 32, 32)
HIDDEN = 64
BATCH = 64
READ = 256  # frames read at a time


class PositionProbe(nn.Module):
    """Predicts positions [M, P] from frames uint8 [M, 3, R, R], in the units of the training data.

    Convolutions produce maps, whose centres of mass are image positions (spatial soft-argmax, Finn et al. 2016,
    arXiv 1509.06113). A small MLP converts those to positions in space.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.maps = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, third, 3, padding=1),
        )
        self.head = nn.Sequential(nn.Linear(2 * third, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(mean)))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, frames: Tensor) -> Tensor:
        return self.mean + self.std * self.standardised(frames)

    def standardised(self, frames: Tensor) -> Tensor:
        """Standardised positions: (position - mean) / standard deviation."""
        pixels = frames.float() / 255 - 0.5
        if pixels.shape[-1] != SIDE:
            pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = self.maps(pixels)
        weights = maps.flatten(2).softmax(-1).view_as(maps)
        line = torch.linspace(-1, 1, maps.shape[-1], device=maps.device)
        centres = [(weights.sum(-2) * line).sum(-1), (weights.sum(-1) * line).sum(-1)]  # x, y
        output: Tensor = self.head(torch.cat(centres, -1))
        return output

    @torch.no_grad()
    def read(self, frames: Tensor) -> Tensor:
        """Positions [..., P] in frames uint8 [..., 3, R, R]."""
        positions = [self(part) for part in frames.flatten(0, -4).split(READ)]
        return torch.cat(positions).unflatten(0, frames.shape[:-3])


def fit_probe(
    frames: Tensor,
    positions: Tensor,
    *,
    updates: int,
    seed: int = 0,
    on_update: Callable[[], Any] = lambda: None,
) -> PositionProbe:
    """Fit a probe to frames uint8 [M, 3, R, R] and positions float32 [M, P], on the frames' device.

    The state of torch's global generators does not change.
    """
    with torch.random.fork_rng([frames.device] if frames.is_cuda else []):
        torch.manual_seed(seed)
        probe = PositionProbe(positions.mean(0), positions.std(0) + 1e-6).to(frames.device)
        wanted = (positions - probe.mean) / probe.std
        optimizer = torch.optim.Adam(probe.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=updates)
        for _ in range(updates):
            rows = torch.randint(len(frames), (BATCH,), device=frames.device)
            loss = F.smooth_l1_loss(probe.standardised(frames[rows]), wanted[rows], beta=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_update()
    return probe.requires_grad_(False).eval()
