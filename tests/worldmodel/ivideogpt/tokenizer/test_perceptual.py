"""LPIPS on a small file of random weights in the usual names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.ivideogpt.tokenizer.perceptual import WIDTHS, PerceptualLoss

LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbering of VGG16's convolutions


def small_weights() -> dict[str, Tensor]:
    """VGG16 with 4 channels everywhere, and positive linear weights."""
    tensors = {}
    for i, layer in enumerate(LAYERS):
        tensors[f"features.{layer}.weight"] = torch.randn(4, 3 if i == 0 else 4, 3, 3) / 4
        tensors[f"features.{layer}.bias"] = torch.randn(4) / 4
    return tensors | {f"lin{i}.model.1.weight": torch.rand(1, 4, 1, 1) for i in range(5)}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return small_weights()


def test_equal_frames_have_no_distance_and_others_have_one(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "lpips.safetensors")
    loss = PerceptualLoss.from_files(tmp_path / "lpips.safetensors")
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert loss.distance(a, a).tolist() == [0.0, 0.0]
    assert (loss.distance(a, b) > 0.0).all()
    torch.testing.assert_close(loss(a, b), loss.distance(a, b).mean())


def test_first_stage_by_hand(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Only the first linear weight is not zero, so the distance is that of relu1_2 alone."""
    for i in range(1, 5):
        weights[f"lin{i}.model.1.weight"].zero_()
    save_file(weights, tmp_path / "lpips.safetensors")
    loss = PerceptualLoss.from_files(tmp_path / "lpips.safetensors")
    a, b = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)

    def relu1_2(x: Tensor) -> Tensor:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
        x = (x - mean) / std
        for layer in (0, 2):
            w, c = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
            x = torch.relu(torch.conv2d(x, w, c, padding=1))
        return x / (x.norm(dim=1, keepdim=True) + 1e-10)

    expected = ((relu1_2(a) - relu1_2(b)).square() * weights["lin0.model.1.weight"]).sum(1).mean()
    torch.testing.assert_close(loss(a, b), expected)


def test_gradients_reach_the_prediction_alone(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "lpips.pth")
    loss = PerceptualLoss.from_files(tmp_path / "lpips.pth")
    prediction, target = torch.zeros(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16, requires_grad=True)
    loss(prediction, target).backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None and prediction.grad.isfinite().all() and prediction.grad.abs().sum() > 0
    assert target.grad is None and not any(p.requires_grad for p in loss.parameters())


def test_two_files_and_the_names_of_the_lpips_package(weights: dict[str, Tensor], tmp_path: Path) -> None:
    whole = {name.replace("features.", "net.slice1."): tensor for name, tensor in weights.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file({k: v for k, v in weights.items() if k.startswith("lin")}, tmp_path / "linear.safetensors")
    torch.save({k: v for k, v in weights.items() if k.startswith("features")}, tmp_path / "vgg.pth")
    a, b = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    one = PerceptualLoss.from_files(tmp_path / "whole.safetensors")(a, b)
    two = PerceptualLoss.from_files(tmp_path / "vgg.pth", tmp_path / "linear.safetensors")(a, b)
    assert one == two


def test_full_size_has_the_parameters_of_vgg16() -> None:
    with torch.device("meta"):
        loss = PerceptualLoss()
    assert sum(p.numel() for p in loss.convolutions.parameters()) == 14_714_688  # VGG16 without its classifier
    assert [p.numel() for p in loss.linear] == [stage[-1] for stage in WIDTHS]


def test_bad_files_are_named_in_one_line(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        PerceptualLoss.from_files(tmp_path / "absent.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "torn.pth").write_bytes(b"torn")
    for name in ("torn.safetensors", "torn.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read") as caught:
            PerceptualLoss.from_files(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="dictionary of tensors"):
        PerceptualLoss.from_files(tmp_path / "list.pth")
    save_file({k: v for k, v in weights.items() if "lin3" not in k}, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors are missing, first lin3\.model\.1\.weight"):
        PerceptualLoss.from_files(tmp_path / "less.safetensors")
    weights["features.5.weight"] = torch.zeros(4, 5, 3, 3)
    save_file(weights, tmp_path / "misshapen.safetensors")
    with pytest.raises(ValueError, match="size mismatch") as caught:
        PerceptualLoss.from_files(tmp_path / "misshapen.safetensors")
    assert "\n" not in str(caught.value)
