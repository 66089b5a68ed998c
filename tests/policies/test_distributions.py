"""The bounded normal is what scipy says it is."""

import pytest
import torch
from scipy.stats import truncnorm
from torchrl.modules.distributions import TruncatedNormal

from policies.distributions import bounded_normal

PARAMETERS = torch.tensor([[0.0, 0.9, -5.0, 0.0, -40.0, -2.0]])  # means 0, 0.72, -1; deviations 0.89, 0.1, 0.55


def test_density_and_entropy_of_actions_within_the_bounds() -> None:
    actions = bounded_normal(PARAMETERS)
    mean, std = actions.loc[0].double().numpy(), actions.scale[0].double().numpy()
    assert std.tolist() == pytest.approx([0.8927, 0.1, 0.55], abs=1e-4)
    theirs = truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    for value in (-0.99, -0.2, 0.5, 0.99):
        ours = actions.log_prob(torch.full((1, 3), value)).item()
        assert ours == pytest.approx(theirs.logpdf([value] * 3).sum(), abs=1e-4)
    assert actions.entropy().item() == pytest.approx(theirs.entropy().sum(), abs=1e-4)


def test_draws_lie_within_the_bounds_and_have_its_moments() -> None:
    torch.manual_seed(0)
    actions = bounded_normal(PARAMETERS)
    drawn = actions.sample((20_000,))
    assert drawn.shape == (20_000, 1, 3) and drawn.abs().max() <= 1
    mean, std = actions.loc[0].double().numpy(), actions.scale[0].double().numpy()
    theirs = truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    torch.testing.assert_close(drawn.mean((0, 1)).double(), torch.as_tensor(theirs.mean()), atol=0.015, rtol=0)
    torch.testing.assert_close(drawn.std((0, 1)).double(), torch.as_tensor(theirs.std()), atol=0.015, rtol=0)


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_draws_densities_and_gradients_are_to_the_bit_those_of_torchrl(spread: float) -> None:
    parameters = spread * torch.randn(200, 8)
    found, means = [], []
    for ours in (True, False):
        leaf = parameters.clone().requires_grad_()
        actions = bounded_normal(leaf)
        if not ours:
            actions = TruncatedNormal(actions.loc, actions.scale, low=-1.0, high=1.0)
        torch.manual_seed(1)
        drawn = actions.sample()
        drawn[0], drawn[1] = 1.0, -1.0
        density, entropy = actions.log_prob(drawn), actions.entropy()
        ((density - density.detach()).exp() * torch.linspace(-1, 1, 200) + 3e-4 * entropy).mean().backward()
        found.append((drawn, density, entropy, leaf.grad))
        means.append(actions.mean)  # TorchRL's deterministic action
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    torch.testing.assert_close(*means, atol=1e-5, rtol=0)


def test_no_action_outside_the_bounds_has_a_density() -> None:
    actions = bounded_normal(PARAMETERS)
    assert actions.log_prob(torch.tensor([[0.0, 1.01, 0.0]])).item() == -torch.inf
    assert torch.isfinite(actions.log_prob(torch.tensor([[0.0, 1.0, -1.0]])))
