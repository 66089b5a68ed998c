"""BroNet and SimBa: their layers in order, and the linear pathway from input to output."""

import torch
from torch import nn

from policies.linear import Linear
from policies.residual import Residual, bro_net, simba


def kinds(layers: nn.Sequential) -> list[type]:
    return [type(layer) for layer in layers]


def test_bro_net_layers() -> None:
    network = bro_net(3, 2, width=8, blocks=2)
    assert kinds(network) == [Linear, nn.LayerNorm, nn.ReLU, Residual, Residual, Linear]
    assert kinds(network[3].layers) == [Linear, nn.LayerNorm, nn.ReLU, Linear, nn.LayerNorm]
    assert network(torch.randn(5, 3)).shape == (5, 2)


def test_simba_layers() -> None:
    network = simba(3, 2, width=8, blocks=2)
    assert kinds(network) == [Linear, Residual, Residual, nn.LayerNorm, Linear]
    assert kinds(network[1].layers) == [nn.LayerNorm, Linear, nn.ReLU, Linear]
    assert network[1].layers[1].out_features == 32
    assert network(torch.randn(5, 3)).shape == (5, 2)


def test_a_block_adds_to_its_input() -> None:
    double = nn.Linear(1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    assert Residual(double)(torch.tensor([3.0])).tolist() == [9.0]
