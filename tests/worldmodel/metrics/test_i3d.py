"""I3D: names, sizes and padding of the published network, and its files, on a small one of random weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.metrics.i3d import I3D, WIDTHS, pad_same
from worldmodel.metrics.images import frechet_distance

SMALL = {name: (2, 2, 4) if name == "stem" else (2, 2, 2, 1, 1, 1) for name in WIDTHS}
SMALL_CLASSES = 5


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Random, of a size that keeps a signal alive through all layers."""
    torch.manual_seed(0)
    tensors = {k: v for k, v in I3D(SMALL, SMALL_CLASSES).state_dict().items() if not k.endswith("_tracked")}
    for tensor in tensors.values():
        if tensor.dim() == 5:
            tensor.normal_(0, 2 * tensor[0].numel() ** -0.5)
        else:
            tensor.uniform_(0.5, 1.5)
    return tensors


def test_names_and_shapes_are_those_of_kinetics_400() -> None:
    with torch.device("meta"):
        net = I3D()
    tensors = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert tensors["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert tensors["Conv3d_2c_3x3.bn.running_var"] == (192,)
    assert tensors["Mixed_3b.b1a.bn.running_mean"] == (96,)
    assert tensors["Mixed_4f.b2b.conv3d.weight"] == (128, 32, 3, 3, 3)
    assert tensors["Mixed_5c.b0.conv3d.weight"] == (384, 832, 1, 1, 1)
    assert tensors["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    assert tensors["logits.conv3d.bias"] == (400,)
    # 57 convolutions with their batch norms, and the logits: Inception v1 inflated has 12.7 million with 400 classes
    assert len(tensors) == 57 * 6 + 2
    assert sum(p.numel() for p in net.parameters()) == 12_697_264


@pytest.mark.parametrize(("size", "kernel", "stride"), [(9, 7, 2), (10, 7, 2), (224, 7, 2), (7, 3, 2), (5, 2, 2)])
def test_padding_halves_rounding_up_and_puts_the_odd_zero_last(size: int, kernel: int, stride: int) -> None:
    padded = pad_same(torch.ones(1, 1, size, 1, 1), (kernel, 1, 1), (stride, 1, 1)).flatten()
    assert (len(padded) - kernel) // stride + 1 == -(-size // stride)
    zeros = [int(padded[: len(padded) // 2].eq(0).sum()), int(padded[len(padded) // 2 :].eq(0).sum())]
    assert zeros[1] - zeros[0] in (0, 1)


def test_features_by_hand_of_a_network_that_adds_nothing(weights: dict[str, Tensor]) -> None:
    """Logits of zero weights are their bias, whatever the video, one for each class and averaged over time."""
    net = I3D(SMALL, SMALL_CLASSES)
    net.logits.conv3d.weight.zero_()
    net.logits.conv3d.bias.copy_(torch.arange(5.0))
    videos = torch.randint(0, 256, (2, 17, 3, 8, 8), dtype=torch.uint8)
    assert net.features(videos).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]] * 2


def test_pictures_reach_the_network_in_minus_one_to_one(weights: dict[str, Tensor]) -> None:
    net, seen = I3D(SMALL, SMALL_CLASSES), []
    net.Conv3d_1a_7x7.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    net.features(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1, 1).expand(2, 9, 3, 8, 8))
    assert seen[0].shape == (2, 3, 9, 224, 224)
    torch.testing.assert_close(seen[0].flatten(1).mean(1), torch.tensor([-1.0, 1.0]))
    assert seen[0].abs().sub(1).abs().max() < 1e-6


def test_a_file_gives_the_features_of_what_was_written(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "i3d.safetensors")
    torch.save(weights, tmp_path / "i3d.pt")
    net = I3D(SMALL, SMALL_CLASSES)
    net.load_state_dict(weights, strict=False)
    videos = torch.randint(0, 256, (3, 9, 3, 16, 16), dtype=torch.uint8)
    expected = net.features(videos)
    assert expected.std(0).min() > 0
    for name in ("i3d.safetensors", "i3d.pt"):
        read = I3D.from_file(tmp_path / name, SMALL, SMALL_CLASSES)
        assert torch.equal(read.features(videos), expected) and not read.training
    assert frechet_distance(expected, expected) == pytest.approx(0.0, abs=1e-6)


def test_every_wrong_tensor_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        I3D.from_file(tmp_path / "absent.pt")
    del weights["Mixed_3b.b1a.bn.running_mean"], weights["Mixed_3b.b0.bn.bias"]
    weights["logits.conv3d.weight"] = torch.zeros(600, 6, 1, 1, 1)
    weights["other"] = torch.zeros(1)
    save_file(weights, tmp_path / "i3d.safetensors")
    with pytest.raises(ValueError, match="holds no I3D") as caught:
        I3D.from_file(tmp_path / "i3d.safetensors", SMALL, SMALL_CLASSES)
    for part in ("2 missing: Mixed_3b.b0.bn.bias, Mixed_3b.b1a.bn.running_mean", "1 unexpected: other"):
        assert part in str(caught.value)
    assert "1 misshapen: logits.conv3d.weight [600, 6, 1, 1, 1] for [5, 6, 1, 1, 1]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_short_videos_are_refused() -> None:
    with pytest.raises(ValueError, match="videos of 9 frames or more, context included, not 8"):
        I3D(SMALL).features(torch.zeros(1, 8, 3, 8, 8, dtype=torch.uint8))
