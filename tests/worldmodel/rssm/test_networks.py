"""The networks around the RSSM: pictures in and out, and states by their own scale."""

import pytest
import torch
from torch.nn import functional as F

from worldmodel.rssm.networks import PixelDecoder, PixelEncoder, Standardiser, Upconvolution, pictures, scaled_init


def test_an_upconvolution_is_upsampling_and_a_convolution():
    torch.manual_seed(0)
    layer, maps = Upconvolution(3, 5), torch.randn(2, 3, 6, 6, requires_grad=True)
    torch.nn.init.normal_(layer.bias)
    plain = F.conv2d(F.interpolate(maps, scale_factor=2), layer.weight, layer.bias.flatten(), padding=2)
    torch.testing.assert_close(layer(maps), plain)
    ours = torch.autograd.grad(layer(maps).square().sum(), [maps, layer.weight])
    theirs = torch.autograd.grad(plain.square().sum(), [maps, layer.weight])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_pictures_go_in_and_out():
    pixels = torch.randint(0, 256, (4, 2, 3, 32, 32), dtype=torch.uint8)
    seen = pictures(pixels)
    torch.testing.assert_close(seen[3], pixels[1, 1] / 255.0)
    encoder, decoder = PixelEncoder(32, 2), PixelDecoder(10, 32, 2, 16)
    assert encoder(seen).shape == (8, encoder.out_features) and encoder.out_features == 2 * 2 * 4 * 2
    drawn = decoder(torch.randn(8, 10))
    assert drawn.shape == seen.shape and drawn.min() > 0 and drawn.max() < 1


def test_a_picture_that_cannot_be_halved_so_often():
    with pytest.raises(ValueError, match=r"env.resolution 40 is no multiple of 16"):
        PixelEncoder(40, 2)


def test_initial_weights_have_the_deviation_asked_for():
    weight = torch.empty(500, 400)
    scaled_init(weight, 400)
    assert weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert weight.abs().max() <= 2 * 1.1368 * 0.05


def test_states_are_standardised_by_all_that_was_seen():
    scale = Standardiser(2)
    first, second = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[4.0, 5.0], [6.0, 5.0]])
    scale.observe(first)
    scale.observe(second)
    assert scale.mean.tolist() == [3.0, 5.0]
    assert scale.deviation[0].item() == pytest.approx(5.0**0.5)  # of 0, 2, 4 and 6
    assert scale.deviation[1].item() == pytest.approx(0.01), "what never moved keeps a finite scale"
    torch.testing.assert_close(scale.inverse(scale(first)), first)


def test_the_deviation_does_not_depend_on_the_offset():
    torch.manual_seed(0)
    scale, values = Standardiser(1), torch.randn(100, 64, 1, dtype=torch.float64) + 3000.0
    for batch in values.float():
        scale.observe(batch)
    assert scale.deviation.item() == pytest.approx(values.std().item(), rel=1e-3)


def test_mean_and_deviation_are_those_of_all_batches():
    scale = Standardiser(1)
    for batch in ([[0.0], [2.0]], [[4.0], [6.0]]):
        scale.observe(torch.tensor(batch))
    assert (scale.mean.item(), scale.deviation.item()) == (3.0, pytest.approx(5.0**0.5))
