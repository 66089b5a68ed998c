"""Whose transitions are whose, what is a copy, and units: known answers."""

import torch

from worldmodel.ensemble.transitions import (
    LEAST_DEVIATION,
    NOT_COPIED,
    Whitener,
    bootstrap,
    copies,
    held_out,
    uniform,
)


def test_numbers_of_an_index_are_uniform_and_always_the_same() -> None:
    index = torch.arange(-20_000, 20_000)
    drawn = uniform(index, salt=3)
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = torch.histc(drawn.float(), bins=10, min=0, max=1)
    assert (counts - 4000).abs().max() < 250  # 4 standard deviations of a binomial
    assert torch.equal(uniform(index[7:9], salt=3), drawn[7:9]), "whatever stands beside it"
    both = torch.stack([drawn, uniform(index, salt=4)])
    assert float(torch.corrcoef(both)[0, 1].abs()) < 0.02
    assert float(torch.corrcoef(torch.stack([drawn[1:], drawn[:-1]]))[0, 1].abs()) < 0.02


def test_bootstrap_is_poisson() -> None:
    counts = bootstrap(torch.arange(50_000), member=2)
    assert abs(float(counts.float().mean()) - 1) < 0.02 and abs(float(counts.float().var()) - 1) < 0.04
    assert abs(float((counts == 0).float().mean()) - 0.3679) < 0.01


def test_held_out_by_share_and_apart_from_the_bootstrap() -> None:
    index = torch.arange(20_000)
    held = held_out(index, 0.2)
    assert abs(float(held.float().mean()) - 0.2) < 0.012
    assert abs(float(bootstrap(index, 0)[held].float().mean()) - 1) < 0.06
    grown = held_out(torch.arange(30_000), 0.2)
    assert torch.equal(grown[:20_000], held)


def test_copies_are_found() -> None:
    torch.manual_seed(0)
    state = torch.randn(3000, 5)
    after = torch.randn(3000, 5)
    after[:, 2] = state[:, 0]  # the frame before
    after[:, 4] = state[:, 4]  # a goal
    assert copies(state, after).tolist() == [NOT_COPIED, NOT_COPIED, 0, NOT_COPIED, 4]
    after[2999, 4] += 1e-3
    assert copies(state, after)[4] == NOT_COPIED, "once seen to change, it is predicted"
    state[:, 1] = state[:, 4] = 7.0
    after[:, 4] = 7.0
    assert copies(state, after)[4] == 4, "rather of itself than of another"


def test_whitening_by_hand() -> None:
    torch.manual_seed(0)
    first = 3 + 2 * torch.randn(50_000)
    values = torch.stack([first, first + 0.01 * torch.randn(50_000), torch.full((50_000,), 5.0)], 1)
    whitener = Whitener(3)
    whitener.measure(values)
    white = whitener(values)
    torch.testing.assert_close(white.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    covariance = torch.cov(white.T)
    torch.testing.assert_close(covariance, torch.diag(torch.tensor([1.0, 1.0, 0.0])), atol=2e-2, rtol=0)
    torch.testing.assert_close(whitener.inverse(white), values, atol=5e-4, rtol=0)


def test_what_is_constant_is_not_blown_up() -> None:
    values = torch.full((100, 2), 0.3)
    whitener = Whitener(2)
    whitener.measure(values)
    assert whitener(values).abs().max() < 1e-2
    moved = whitener(values + LEAST_DEVIATION)
    torch.testing.assert_close(moved, torch.ones(100, 2), atol=1e-2, rtol=0)
