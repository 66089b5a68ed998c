"""I3D (Carreira & Zisserman 2017, arXiv 1705.07750), whose logits are the features of FVD.

The weights are not part of this package. They are read from the user's file, with the tensor names of the PyTorch
state dicts of Kinetics-400 (`i3d_pretrained_400.pt`): `Conv3d_1a_7x7.conv3d.weight`, ..,
`Mixed_3b.b1a.bn.running_mean`, .., `logits.conv3d.bias`. Padding, order and epsilon are those of the network that is
commonly used for FVD in PyTorch.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.tensor_file import read_tensors

SIDE = 224
MIN_FRAMES = 9  # halved three times, rounded up, leaves two frames for the last pooling
CLASSES = 400
BATCH_NORM_EPS = 1e-5
# output channels: of the stem's three convolutions, and of each block's branches b0, b1a, b1b, b2a, b2b, b3b
WIDTHS: dict[str, Sequence[int]] = {
    "stem": (64, 64, 192),
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pad [.., T, H, W] with zeros, so that each output axis has length / stride, rounded up.

    With an odd number of zeros the end has one more, as in TensorFlow, where the weights come from.
    """
    pad: list[int] = []
    for size, k, s in zip(x.shape[:-4:-1], reversed(kernel), reversed(stride), strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pad += [total // 2, total - total // 2]
    return F.pad(x, pad)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(padded)))


class Pool(nn.Module):
    """Max pooling of non-negative inputs, on which zero padding has no effect."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four parallel branches: 1×1, two of 1×1 then 3×3, and pooling then 1×1."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(inputs, b0, 1)
        self.b1a, self.b1b = Unit(inputs, b1a, 1), Unit(b1a, b1b, 3)
        self.b2a, self.b2b = Unit(inputs, b2a, 1), Unit(b2a, b2b, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(inputs, b3b, 1)
        self.outputs = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))]
        return torch.cat(branches, 1)


class Logits(nn.Module):
    """Mean over 2×7×7, then a linear layer with a bias, named as a convolution."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(F.avg_pool3d(x, (2, 7, 7), (1, 1, 1)))


class I3D(nn.Sequential):
    """Frozen I3D in eval mode: videos float [B, 3, T, 224, 224] in [-1, 1] to logits [B, 400, T', 1, 1]."""

    def __init__(self, widths: Mapping[str, Sequence[int]] = WIDTHS, classes: int = CLASSES) -> None:
        first, second, third = widths["stem"]
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["Conv3d_1a_7x7"] = Unit(3, first, 7, 2)
        parts["MaxPool3d_2a_3x3"] = Pool((1, 3, 3), (1, 2, 2))
        parts["Conv3d_2b_1x1"] = Unit(first, second, 1)
        parts["Conv3d_2c_3x3"] = Unit(second, third, 3)
        parts["MaxPool3d_3a_3x3"] = Pool((1, 3, 3), (1, 2, 2))
        pools = {"Mixed_4b": ("MaxPool3d_4a_3x3", Pool((3, 3, 3), (2, 2, 2)))}
        pools["Mixed_5b"] = ("MaxPool3d_5a_2x2", Pool((2, 2, 2), (2, 2, 2)))
        channels = third
        for name in (name for name in widths if name != "stem"):
            if name in pools:
                parts[pools[name][0]] = pools[name][1]
            block = Mixed(channels, widths[name])
            parts[name], channels = block, block.outputs
        parts["logits"] = Logits(channels, classes)
        super().__init__(parts)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def features(self, videos: Tensor) -> Tensor:
        """Logits [B, 400] of videos uint8 [B, T, 3, R, R], averaged over time.

        Raises:
            ValueError: they have fewer than 9 frames.
        """
        rows, frames = videos.shape[:2]
        if frames < MIN_FRAMES:
            raise ValueError(f"FVD needs videos of {MIN_FRAMES} frames or more, context included, not {frames}")
        pixels = videos.flatten(0, 1).float() / 255
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
        pixels = pixels.unflatten(0, (rows, frames)).transpose(1, 2)
        logits: Tensor = self(2 * pixels - 1)
        return logits.mean((2, 3, 4))

    @classmethod
    def from_file(cls, path: Path, widths: Mapping[str, Sequence[int]] = WIDTHS, classes: int = CLASSES) -> "I3D":
        """Read the weights of a .safetensors or torch file.

        Raises:
            FileNotFoundError: the file is absent.
            ValueError: a tensor is missing, unexpected or misshapen; names all of them.
        """
        found = {name: tensor for name, tensor in read_tensors(path).items() if not name.endswith("_tracked")}
        net = cls(widths, classes)
        wanted = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("_tracked")}
        wrong = {
            "missing": sorted(wanted.keys() - found.keys()),
            "unexpected": sorted(found.keys() - wanted.keys()),
            "misshapen": [
                f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}"
                for name in wanted
                if name in found and found[name].shape != wanted[name].shape
            ],
        }
        if any(wrong.values()):
            reasons = "; ".join(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
            raise ValueError(f"{path} holds no I3D of Kinetics-400: {reasons}")
        net.load_state_dict(found, strict=False)  # but for the batch norms' counters, which inference does not use
        return net
