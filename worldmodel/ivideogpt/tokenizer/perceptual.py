"""LPIPS: distance between frames in the feature space of VGG16 (Zhang et al., arXiv 1801.03924).

The weights are not part of this package. They are read from the user's files, with the tensor names of torchvision's
VGG16 (`features.0.weight`, `features.2.weight`, ..) and of the lpips package (`lin0.model.1.weight`, ..; files of its
whole network, with `net.slice1.0.weight`, .., can be read too).
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.tensor_file import read_tensors

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # VGG16, stage by stage
EPS = 1e-10


class PerceptualLoss(nn.Module):
    """Mean LPIPS of (prediction, target) [M, 3, R, R] in [0, 1], 0-d. Frozen; only the prediction has a gradient.

    The last activation of each stage enters the distance. The side halves from each stage to the next.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: Sequence[Sequence[int]] = WIDTHS) -> None:
        super().__init__()
        inputs = [3, *(width for stage in widths for width in stage)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(inputs))
        self.depths = [len(stage) for stage in widths]
        self.linear = nn.ParameterList(torch.zeros(stage[-1]) for stage in widths)
        # The mean and deviation of ImageNet's colours, which VGG16 was trained with.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the batch of the LPIPS distance."""
        return self.distance(prediction, target).mean()

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The LPIPS distance of each pair, [M]."""
        with torch.no_grad():
            wanted = self.features(target)
        found = self.features(prediction)
        stages = [
            torch.einsum("mchw,c->mhw", (a - b).square(), weight).mean((1, 2))
            for a, b, weight in zip(found, wanted, self.linear, strict=True)
        ]
        return torch.stack(stages).sum(0)

    def features(self, frames: Tensor) -> list[Tensor]:
        """Activations of the stages for frames [M, 3, R, R] in [0, 1], of norm 1 at each position."""
        x, found = (frames - self.mean) / self.std, []
        convolutions = iter(self.convolutions)
        for stage, depth in enumerate(self.depths):
            x = F.max_pool2d(x, 2) if stage > 0 else x
            for _ in range(depth):
                x = F.relu(next(convolutions)(x))
            found.append(x / (x.square().sum(1, keepdim=True) + EPS**2).sqrt())
        return found

    @classmethod
    def from_files(cls, *paths: str | Path) -> "PerceptualLoss":
        """Read the tensors of VGG16 and LPIPS from one or more .safetensors or torch files.

        Raises:
            FileNotFoundError: A file is absent.
            ValueError: A file cannot be read, or tensors are missing.
        """
        tensors = {_plain_name(name): tensor for path in paths for name, tensor in read_tensors(Path(path)).items()}
        depths = [len(stage) for stage in WIDTHS]
        # torchvision counts layers: a convolution and its ReLU are two, the pooling between stages is one.
        layers = [2 * i + sum(i >= sum(depths[: k + 1]) for k in range(len(depths))) for i in range(sum(depths))]
        names = [f"features.{layer}" for layer in layers]
        linear = [f"lin{stage}.model.1.weight" for stage in range(len(depths))]
        wanted = [*linear, *(f"{name}.{part}" for name in names for part in ("weight", "bias"))]
        missing = [name for name in wanted if name not in tensors]
        if missing:
            files = " and ".join(map(str, paths))
            raise ValueError(
                f"{files}: no LPIPS(VGG16) weights, {len(missing)} tensors are missing, first {missing[0]}"
            )
        outputs = iter([len(tensors[f"{name}.bias"]) for name in names])
        loss = cls([[next(outputs) for _ in range(depth)] for depth in depths])
        state = {f"linear.{i}": tensors[name].flatten() for i, name in enumerate(linear)}
        for i, name in enumerate(names):
            state |= {f"convolutions.{i}.{part}": tensors[f"{name}.{part}"] for part in ("weight", "bias")}
        try:
            loss.load_state_dict({"mean": loss.mean, "std": loss.std, **state})
        except RuntimeError as error:
            raise ValueError(f"{' and '.join(map(str, paths))}: {' '.join(str(error).split())}") from None
        return loss


def _plain_name(name: str) -> str:
    """Name in torchvision of a tensor from a file of the lpips package's whole network."""
    return re.sub(r"^(?:net\.)?slice\d+\.", "features.", name)
