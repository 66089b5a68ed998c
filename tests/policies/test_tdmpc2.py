"""TD-MPC2's prior and critics: known answers of targets, losses, the range of values and the moving average."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrl.data import Bounded

from policies.mish import Mish
from policies.tdmpc2 import PriorAndCritics, ValueRange
from policies.two_hot_critics import TwoHotCritics, dropped

LATENT, ACTIONS = 8, 2


def make(**settings: Any) -> PriorAndCritics:
    sizes = {"latent_size": LATENT, "gamma": 0.9, "width": 16}
    return PriorAndCritics(Bounded(-1, 1, (ACTIONS,)), **{**sizes, **settings})


def critics(count: int = 3) -> TwoHotCritics:
    made = TwoHotCritics(LATENT + ACTIONS, count, width=16, bins=101, limit=10.0, dropout=0.5)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def fixed_values(monkeypatch: pytest.MonkeyPatch, network: TwoHotCritics, of_critics: Tensor) -> None:
    """Let critic i value everything at of_critics[i]."""

    def values(latent: Tensor, action: Tensor, chosen: Tensor, *, drops: bool = False) -> Tensor:
        return of_critics[chosen].view(-1, *[1] * latent.ndim).expand(-1, *latent.shape[:-1], 1)

    monkeypatch.setattr(network, "values", values)


def test_mish_is_torchs() -> None:
    ends = torch.tensor([-1e30, 1e30])
    ours, theirs = (torch.cat((torch.linspace(-100, 100, 2001), ends)).requires_grad_() for _ in range(2))
    found, expected = Mish()(ours), nn.Mish()(theirs)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_batched_critics_are_each_a_perceptron() -> None:
    networks, latent, action = critics(), torch.randn(4, 5, LATENT), torch.randn(4, 5, ACTIONS)
    logits = networks(latent, action)
    assert logits.shape == (3, 4, 5, 101)
    for number in range(3):
        layers: list[nn.Module] = []
        for layer, weight in enumerate(networks.weights):
            linear = nn.Linear(*weight.shape[1:])
            linear.weight.data, linear.bias.data = weight[number].T, networks.biases[layer][number, 0]
            layers.append(linear)
            if layer < 2:
                norm = nn.LayerNorm(16)
                norm.weight.data = networks.gains[layer][number, 0]
                norm.bias.data = networks.shifts[layer][number, 0]
                layers += [norm, nn.Mish()]
        alone = nn.Sequential(*layers)(torch.cat((latent, action), -1))
        torch.testing.assert_close(logits[number], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(networks(latent, action, torch.tensor([2, 0])), logits[[2, 0]])


def test_dropout_is_for_learning_alone() -> None:
    networks, latent, action = critics(), torch.randn(4, LATENT), torch.randn(4, ACTIONS)
    assert torch.equal(networks(latent, action), networks(latent, action))
    assert not torch.equal(networks(latent, action, drops=True), networks(latent, action, drops=True))


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 1000, requires_grad=True)
    found = dropped(values, 0.2)
    assert set(found.unique().tolist()) == {0.0, 1.25}
    assert float((found == 0).float().mean()) == pytest.approx(0.2, abs=0.003)  # its std is .0004
    assert torch.equal(dropped(values, 0.0), values)
    found.sum().backward()
    assert values.grad is not None and torch.equal(values.grad, found), "what is dropped passes no gradient"


def test_the_prior_learns_from_critics_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, asked = make(), []
    values = policy.critics.values

    def asking(*inputs: Tensor, drops: bool = False) -> Tensor:
        asked.append(drops)
        return values(*inputs, drops=drops)

    monkeypatch.setattr(policy.critics, "values", asking)
    policy.prior_loss(torch.rand(4, 2, LATENT), torch.ones(2)).loss.backward()
    policy.value(torch.rand(4, LATENT))
    assert asked == [True, False]
    assert all(weight.grad is None and weight.requires_grad for weight in policy.critics.parameters())


def test_networks_start_from_normal_weights_and_zero_biases() -> None:
    policy = make(width=256)
    for weight in (policy.critics.weights[1], policy.prior[3].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02) and weight.abs().max().item() > 0.06
    mean, log_std = policy.prior(torch.zeros(1, LATENT)).chunk(2, -1)
    assert not mean.any() and not log_std.any()


def test_the_range_of_values_is_a_moving_average_from_one() -> None:
    found = ValueRange(0.1)
    found.update(torch.arange(101.0))
    assert float(found.average) == pytest.approx(1 + 0.1 * 89)
    found.update(torch.zeros(10))
    assert float(found.average) == pytest.approx(9.9 + 0.1 * (1 - 9.9)), "a batch without a range counts as 1"


def test_values_are_two_hot_codes_in_symlog_space() -> None:
    networks = make().critics
    latent, action, chosen = torch.rand(4, LATENT), torch.rand(4, ACTIONS), torch.tensor([1, 3])
    assert networks.values(latent, action, chosen).abs().max() < 1e-6, "0 before they have learned"
    target = torch.tensor([[math.expm1(1.05)]])  # a quarter of the way from bin 1.0 to bin 1.2
    logits = torch.full((1, 1, 101), -1e9)
    logits[..., 55:57] = torch.tensor([0.75, 0.25]).log()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(networks.losses(logits, target), torch.tensor([[entropy]]))


def test_a_target_takes_the_lower_of_two_random_critics(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make()
    fixed_values(monkeypatch, policy.target_critics, torch.arange(5.0))
    fixed_values(monkeypatch, policy.critics, torch.full((5,), -100.0))  # the online ones are not asked
    reward, terminated = torch.full((1, 1), 7.0), torch.zeros(1, 1, dtype=torch.bool)
    latent, seen = torch.rand(1, LATENT), set()
    for _ in range(200):
        seen.add(round(float(policy.target(latent, reward, terminated)), 4))
    assert seen == {7.0 + round(0.9 * lower, 4) for lower in (0, 1, 2, 3)}, "4 is never the lower of two"
    assert float(policy.target(latent, reward, ~terminated)) == 7.0
    fixed_values(monkeypatch, policy.critics, torch.arange(5.0))
    means = {float(policy.value(latent)) for _ in range(200)}
    assert means == {(a + b) / 2 for a in range(5) for b in range(a)}


def test_target_critics_follow_as_a_moving_average() -> None:
    policy = make(target_rate=0.01)
    before = [p.clone() for p in policy.target_critics.parameters()]
    for parameter in policy.critics.parameters():
        parameter.data += 1
    policy.update_targets()
    for old, new in zip(before, policy.target_critics.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.01)
    assert not any(p.requires_grad for p in policy.target_critics.parameters())


def test_the_value_loss_weighs_steps_and_its_gradient_reaches_the_latent_states() -> None:
    policy, latent = make(), torch.rand(4, 3, LATENT, requires_grad=True)
    action, target, weight = torch.rand(4, 3, ACTIONS), torch.ones(4, 3, 1), torch.tensor([1.0, 0.5, 0.25])
    loss = policy.value_loss(latent, action, target, weight)
    assert float(loss) == pytest.approx(1.75 / 3 * math.log(101), rel=1e-5)
    nn.init.normal_(policy.critics.weights[-1])  # zero at first, which passes nothing on
    policy.value_loss(latent, action, target, weight).backward()
    assert latent.grad is not None and latent.grad.any()


def test_the_prior_climbs_values_divided_by_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values from 0 to 100 have the range 90 from the 5th to the 95th percentile; those of the first step count."""
    policy = make(entropy=0.0, scale_rate=1.0)
    worth = torch.arange(101.0)[:, None, None] * torch.tensor([[1.0], [10.0]])
    monkeypatch.setattr(policy.critics, "values", lambda *_, drops: worth.expand(2, -1, -1, -1))
    found = policy.prior_loss(torch.rand(101, 2, LATENT), torch.tensor([1.0, 0.5]))
    assert float(found.metrics["value_range"]) == pytest.approx(90)
    assert float(found.loss) == pytest.approx(-(50 + 0.5 * 500) / 2 / 90)
    monkeypatch.setattr(policy.critics, "values", lambda *_, drops: 0.001 * worth.expand(2, -1, -1, -1))
    assert float(policy.prior_loss(torch.rand(101, 2, LATENT), torch.ones(2)).metrics["value_range"]) == 1


def test_the_entropy_of_the_drawn_actions_counts_once_for_each_action(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(entropy=2.0)  # all values are 0
    monkeypatch.setattr(policy, "sample", lambda latent: (torch.zeros(4, 1, ACTIONS), torch.full((4, 1, 1), -3.0)))
    assert float(policy.prior_loss(torch.rand(4, 1, LATENT), torch.ones(1)).loss) == pytest.approx(-2.0 * ACTIONS * 3.0)


def test_actions_are_bounded_and_drawn() -> None:
    policy = make()
    latent = torch.rand(50, LATENT)
    action, log_prob = policy.sample(latent)
    assert action.shape == (50, ACTIONS) and log_prob.shape == (50, 1) and action.abs().max() <= 1
    assert not torch.equal(action, policy.sample(latent)[0])


def test_one_critic_is_refused() -> None:
    with pytest.raises(ValueError, match="critics is 1: it must be 2 or more"):
        make(critics=1)
