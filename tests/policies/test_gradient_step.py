"""A gradient step: clipped over all parts, and a gradient for what learns alone."""

import pytest
import torch
from torch.optim import SGD

from policies.base import gradient_step


def test_a_gradient_is_clipped_to_a_norm_over_all_parts() -> None:
    for clip, expected in ((20.0, (-12, -16)), (None, (-30, -40))):
        first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        optimizers = (SGD([parameter], lr=1.0) for parameter in (first, second))
        norm = gradient_step((30 * first + 40 * second).sum(), optimizers, clip)
        assert norm == (None if clip is None else 50)
        assert (float(first), float(second)) == pytest.approx(expected, rel=1e-4)


def test_parameters_of_no_optimizer_get_no_gradient_and_those_out_of_the_loss_stay() -> None:
    learned, out_of_the_loss, other = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))
    learned.grad = torch.full((1,), 7.0)  # of an earlier step: replaced
    gradient_step((learned * other).sum(), [SGD([learned, out_of_the_loss], lr=1.0)])
    assert (float(learned), float(out_of_the_loss), float(other)) == (0, 1, 1)
    assert out_of_the_loss.grad is None and other.grad is None
