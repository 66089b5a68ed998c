"""Encoders, MLPs, initial weights and target networks."""

import pytest
import torch
from torch import nn

from policies.linear import Linear
from policies.networks import (
    ConvEncoder,
    Critics,
    RunningNorm,
    constant_weights,
    mlp,
    orthogonal_init,
    perceptron,
    soft_update,
)


@pytest.mark.parametrize(
    ("channels", "strides", "features"),
    [((32, 32, 32, 32), (2, 1, 1, 1), 20_000), ((16, 32, 64), (2, 2, 2), 3_136)],
)
def test_encoder_sizes(channels: tuple[int, ...], strides: tuple[int, ...], features: int) -> None:
    encoder = ConvEncoder(9, 64, channels=channels, strides=strides)
    assert encoder.out_features == features
    assert encoder(torch.zeros(9, 64, 64, dtype=torch.uint8)).shape == (features,)
    assert encoder(torch.zeros(2, 3, 9, 64, 64, dtype=torch.uint8)).shape == (2, 3, features)


def test_encoder_centres_pixels_and_reads_bytes_and_floats_alike() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(3, 8, channels=(4,), strides=(1,))
    frames = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    floats = frames.float()
    convolution = encoder.layers[0]
    expected = torch.relu(convolution(floats / 255 - 0.5)).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(encoder(frames), expected)
    torch.testing.assert_close(encoder(floats), expected)
    assert torch.equal(floats, frames.float()), "the caller's pixels were written to"


@pytest.mark.parametrize(("resolution", "strides"), [(8, (2, 2, 2)), (64, (2, 2))])
def test_encoder_rejects_impossible_sizes(resolution: int, strides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one for each|too small"):
        ConvEncoder(9, resolution, channels=(4, 4, 4), strides=strides)


def test_encoder_rejects_other_frames() -> None:
    with pytest.raises(ValueError, match="built for frames"):
        ConvEncoder(9, 64)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_mlp_layers() -> None:
    plain = [type(layer) for layer in mlp((3, 4, 5, 1))]
    assert plain == [Linear, nn.ReLU, Linear, nn.ReLU, Linear]
    normed = [type(layer) for layer in mlp((3, 4, 1), layer_norm=True)]
    assert normed == [Linear, nn.LayerNorm, nn.ReLU, Linear]


def test_orthogonal_init() -> None:
    layers = nn.Sequential(nn.Linear(4, 8), nn.Conv2d(8, 4, 1))
    orthogonal_init(layers)
    linear, convolution = layers[0].weight, layers[1].weight.flatten(1)
    torch.testing.assert_close(linear.T @ linear, torch.eye(4))
    torch.testing.assert_close(convolution @ convolution.T, 2 * torch.eye(4))
    assert not layers[0].bias.any()


def test_soft_update_moves_by_the_rate() -> None:
    target, source = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(target.weight, 1.0)
    nn.init.constant_(source.weight, 3.0)
    soft_update(target, source, 0.25)
    assert target.weight.tolist() == [[1.5]]
    assert source.weight.tolist() == [[3.0]]


def test_constant_weights_have_no_gradients_and_pass_those_of_inputs() -> None:
    layer, inputs = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with constant_weights(layer):
        loss = layer(inputs).sum()
    loss.backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    assert torch.equal(inputs.grad, layer.weight)
    with pytest.raises(RuntimeError, match="stopped"), constant_weights(layer):
        raise RuntimeError("stopped")
    assert all(parameter.requires_grad for parameter in layer.parameters())
    layer.bias.requires_grad_(False)
    with constant_weights(layer):
        pass
    assert layer.weight.requires_grad and not layer.bias.requires_grad, "what was frozen stays so"


def test_critics_are_independent() -> None:
    torch.manual_seed(0)
    critics = Critics(perceptron, 5, 3)
    features, action = torch.randn(4, 3), torch.randn(4, 2)
    values = critics(features, action)
    assert values.shape == (3, 4, 1)
    values[1].sum().backward()
    learned = [any(bool(p.grad.any()) for p in network.parameters()) for network in critics.networks]
    assert learned == [False, True, False]
    critics.scale = 7.0
    torch.testing.assert_close(critics(features, action), 7.0 * values)


def test_running_norm_equals_the_statistics_of_all_rows() -> None:
    torch.manual_seed(0)
    rows = 5.0 + torch.randn(70, 3) * torch.tensor([0.1, 1.0, 10.0])
    norm = RunningNorm(3)
    for part in rows.split([10, 20, 40]):
        norm.observe(part)
    torch.testing.assert_close(norm.mean, rows.mean(0))
    torch.testing.assert_close(norm.variance, rows.var(0, correction=0))
    torch.testing.assert_close(norm(rows), (rows - rows.mean(0)) / rows.std(0, correction=0))


def test_running_norm_does_not_blow_up_what_hardly_moves() -> None:
    norm = RunningNorm(1, min_std=0.5)
    norm.observe(torch.full((8, 1), 2.0))
    assert norm(torch.tensor([3.0])).tolist() == [2.0]
