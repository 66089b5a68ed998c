"""The RSSM's losses: numbers worked out by hand, and which side of the KL each trains."""

import pytest
import torch

from worldmodel.rssm.losses import divergence, kl_losses, squared_error

HALF, SKEWED = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])


def test_divergence_by_hand():
    expected = 0.9 * torch.log(torch.tensor(0.9 / 0.5)) + 0.1 * torch.log(torch.tensor(0.1 / 0.5))
    assert divergence(SKEWED, HALF).item() == pytest.approx(expected.item())
    two = divergence(SKEWED.expand(2, 2), HALF.expand(2, 2))
    assert two.item() == pytest.approx(2 * expected.item()), "summed over the categoricals"


def test_each_half_of_the_balanced_kl_trains_one_side():
    posterior, prior = SKEWED.clone().requires_grad_(), HALF.clone().requires_grad_()
    dynamics, representation = kl_losses(posterior, prior, free_nats=0.0)
    assert dynamics.item() == representation.item()
    assert torch.autograd.grad(dynamics, posterior, allow_unused=True) == (None,)
    assert torch.autograd.grad(representation, prior, allow_unused=True) == (None,)
    dynamics, representation = kl_losses(posterior, prior, free_nats=0.0)
    assert (torch.autograd.grad(dynamics, prior)[0] != 0).all()
    assert (torch.autograd.grad(representation, posterior)[0] != 0).all()


def test_free_nats_are_of_the_sum_over_categoricals():
    """Three categoricals of 0.37 nats each are more than one nat together, though none is by itself."""
    posterior, prior = SKEWED.expand(3, 2).clone().requires_grad_(), HALF.expand(3, 2).clone()
    assert divergence(SKEWED, HALF).item() < 1 < divergence(posterior, prior).item()
    _, representation = kl_losses(posterior, prior, free_nats=1.0)
    assert (torch.autograd.grad(representation, posterior)[0] != 0).all()
    _, representation = kl_losses(posterior, prior, free_nats=2.0)
    assert representation.item() == 2.0
    assert (torch.autograd.grad(representation, posterior)[0] == 0).all()


def test_squared_error_is_summed_over_a_step_and_averaged_over_steps():
    assert squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == 2.5
