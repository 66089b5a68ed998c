"""BroNet and SimBa: residual networks for larger actors and critics."""

from __future__ import annotations

from torch import Tensor, nn

from policies.linear import Linear
from policies.networks import orthogonal_init
from policies.ranges import Expansion, Number, Width


class Residual(nn.Module):
    """x + layers(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.layers(x)
        return output


def bro_net(in_size: int, out_size: int, *, width: Width, blocks: Number) -> nn.Sequential:
    """BroNet (Nauman et al. 2024, arXiv 2405.16158): [*B, in] -> [*B, out].

    Linear, LayerNorm, ReLU; then `blocks` residual blocks (Linear, LayerNorm, ReLU, Linear, LayerNorm); then Linear.
    """

    def block() -> Residual:
        first = (Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        return Residual(*first, Linear(width, width), nn.LayerNorm(width))

    stem = (Linear(in_size, width), nn.LayerNorm(width), nn.ReLU())
    return _initialised(*stem, *(block() for _ in range(blocks)), Linear(width, out_size))


def simba(in_size: int, out_size: int, *, width: Width, blocks: Number, expansion: Expansion = 4) -> nn.Sequential:
    """SimBa (Lee et al. 2024, arXiv 2410.09754) without its normalisation of inputs: [*B, in] -> [*B, out].

    Linear; then `blocks` residual blocks (LayerNorm, Linear to `expansion` times the width, ReLU, Linear back);
    then LayerNorm and Linear. `RunningNorm` normalises the inputs once for all networks of a policy.
    """

    def block() -> Residual:
        inner = expansion * width
        return Residual(nn.LayerNorm(width), Linear(width, inner), nn.ReLU(), Linear(inner, width))

    stem = Linear(in_size, width)
    return _initialised(stem, *(block() for _ in range(blocks)), nn.LayerNorm(width), Linear(width, out_size))


def _initialised(*layers: nn.Module) -> nn.Sequential:
    network = nn.Sequential(*layers)
    orthogonal_init(network)
    return network
