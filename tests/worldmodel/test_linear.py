"""Linear layers: by oneDNN they are those of PyTorch to rounding, and elsewhere to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import linear, products
from worldmodel.linear import LEAST_WORK, Linear

BATCH, ROWS, INPUTS, OUTPUTS = 3, 48, 160, 96
assert BATCH * ROWS * INPUTS * OUTPUTS >= LEAST_WORK > ROWS * INPUTS * OUTPUTS


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of oneDNN's outputs so far, on a processor on which it is taken to be faster."""
    found: list[tuple[int, ...]] = []

    def recorded(*arguments: Tensor) -> Tensor:
        outputs = products.product(*arguments)
        found.append(tuple(outputs.shape))
        return outputs

    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "product", recorded)
    return found


def results(layer: nn.Linear, inputs: Tensor) -> tuple[Tensor | None, ...]:
    """Outputs, and gradients of the inputs, the weight and the bias."""
    leaf = inputs.detach().requires_grad_()
    outputs = layer(leaf)
    outputs.square().sum().backward()
    return outputs, leaf.grad, layer.weight.grad, layer.bias.grad


def layers() -> tuple[Linear, nn.Linear]:
    """Two layers of equal weights."""
    torch.manual_seed(0)
    ours, theirs = Linear(INPUTS, OUTPUTS), nn.Linear(INPUTS, OUTPUTS)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")
@pytest.mark.parametrize("expanded", [False, True])
def test_values_and_gradients_are_those_of_pytorch(expanded: bool, counted: list[tuple[int, ...]]) -> None:
    ours, theirs = layers()
    inputs = torch.randn(1, ROWS, INPUTS).expand(BATCH, -1, -1) if expanded else torch.randn(BATCH, ROWS, INPUTS)
    for found, expected in zip(results(ours, inputs), results(theirs, inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)
    rows = BATCH * ROWS
    assert counted == [(rows, OUTPUTS), (rows, INPUTS), (OUTPUTS, INPUTS)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")
def test_a_layer_without_bias(counted: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    layer, inputs = Linear(INPUTS, OUTPUTS, bias=False), torch.randn(BATCH, ROWS, INPUTS)
    found, expected = layer(inputs), F.linear(inputs, layer.weight)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(outputs.square().sum(), layer.weight)[0] for outputs in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)
    assert len(counted) == 2


def test_under_autocast_and_compiled_a_layer_is_pytorchs(counted: list[tuple[int, ...]]) -> None:
    ours, theirs = layers()
    inputs = torch.randn(BATCH, ROWS, INPUTS)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), theirs(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(inputs), theirs(inputs)) and ours(inputs).dtype == torch.bfloat16
    assert not counted


@pytest.mark.parametrize("shape", [(ROWS, INPUTS), (0, INPUTS), (INPUTS,)], ids=["few rows", "no rows", "a vector"])
def test_small_products_are_pytorchs(shape: tuple[int, ...], counted: list[tuple[int, ...]]) -> None:
    ours, theirs = layers()
    inputs = torch.randn(shape)
    assert torch.equal(ours(inputs), theirs(inputs)) and not counted


def test_where_mkl_is_faster_the_layer_is_pytorchs(
    monkeypatch: pytest.MonkeyPatch, counted: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    ours, theirs = layers()
    inputs = torch.randn(BATCH, ROWS, INPUTS)
    assert torch.equal(ours(inputs), theirs(inputs)) and not counted


@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        ("AuthenticAMD\nflags: avx2 avx512f avx512_bf16", True),
        ("AuthenticAMD\nflags: avx2 fma", False),
        ("GenuineIntel\nflags: avx2 avx512f", False),
        (None, False),
    ],
    ids=["AMD with AVX-512", "AMD with AVX2", "Intel", "not Linux"],
)
def test_onednn_multiplies_on_amd_with_avx512_alone(
    processor: str | None, faster: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "cpuinfo")
    assert products.onednn_is_faster.__wrapped__() is faster
