"""The members' networks: products by oneDNN and by PyTorch are the same, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldmodel import products
from worldmodel.ensemble import members as networks
from worldmodel.ensemble.members import Members


def made() -> tuple[Members, Tensor]:
    torch.manual_seed(0)
    return Members(3, 6, 4, width=24, layers=3), torch.randn(3, 50, 6)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's batched products alone, as on a GPU."""
    for module in (networks, products):
        monkeypatch.setattr(module, "by_onednn", lambda inputs: False)


@pytest.fixture
def expected(plainly: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Outputs and gradients by PyTorch's batched products."""
    found = outputs_and_gradients()
    monkeypatch.undo()
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    return found


def outputs_and_gradients() -> dict[str, Tensor]:
    networks, inputs = made()
    inputs.requires_grad_()
    gaussian = networks(inputs)
    loss = networks.loss(gaussian, torch.ones_like(gaussian.mean), torch.arange(4))
    loss.backward()
    with torch.no_grad():
        frozen = networks(inputs)
        chosen = networks.means(inputs[:2], torch.tensor([2, 0]))
    found = {"mean": gaussian.mean, "variance": gaussian.log_variance, "inputs": inputs.grad, "chosen": chosen}
    found |= {"frozen mean": frozen.mean, "frozen variance": frozen.log_variance}
    return found | {name: parameter.grad for name, parameter in networks.named_parameters()}


def test_products_and_gradients_are_those_of_pytorch(expected: dict[str, Tensor]) -> None:
    found = outputs_and_gradients()
    assert found.keys() == expected.keys() and len(found) == 6 + 2 * 4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_means_are_those_of_the_gaussians() -> None:
    networks, inputs = made()
    torch.testing.assert_close(networks.means(inputs), networks(inputs).mean)
    whole = networks(torch.stack([inputs[1], inputs[0], inputs[0]])).mean
    torch.testing.assert_close(networks.means(inputs[:2], torch.tensor([2, 0])), whole[[2, 0]])
