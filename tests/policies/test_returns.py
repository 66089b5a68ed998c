"""n-step and λ-returns worked out by hand."""

import pytest
import torch
from torchrl.objectives.value.functional import td_lambda_return_estimate

from policies.returns import lambda_return, n_step


def test_full_length_sums_all_rewards() -> None:
    result = n_step(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[False, False, False]]), gamma=0.5)
    assert result.reward.tolist() == [[1.0 + 1.0 + 1.0]]
    assert result.gamma.tolist() == [[0.125]]
    assert result.steps.tolist() == [[3]]


def test_the_last_step_counts_and_nothing_after_it() -> None:
    reward = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, float("nan")]])
    last = torch.tensor([[True, False, True], [False, False, True], [False, True, False]])
    result = n_step(reward, last, gamma=0.5)
    assert result.reward.tolist() == [[1.0], [3.0], [2.0]]
    assert result.gamma.tolist() == [[0.5], [0.125], [0.25]]
    assert result.steps.tolist() == [[1], [3], [2]]


def test_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    last = torch.rand(50, 7, generator=generator) < 0.2
    result = n_step(reward, last, gamma=0.9)
    for row in range(50):
        total, steps = 0.0, 0
        for k in range(7):
            total += 0.9**k * float(reward[row, k])
            steps += 1
            if last[row, k]:
                break
        assert float(result.reward[row]) == pytest.approx(total)
        assert float(result.gamma[row]) == pytest.approx(0.9**steps)
        assert int(result.steps[row]) == steps


def test_rejects_other_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        n_step(torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.bool), gamma=0.9)


def returns_of(reward: list[float], value: list[float], continues: list[float], **numbers: float) -> list[float]:
    rows = (torch.tensor([row]) for row in (reward, value, continues))
    return lambda_return(*rows, **numbers)[0].tolist()


def test_lambda_return_by_hand() -> None:
    """R_1 = 2 + 0.5 · 8 = 6; R_0 = 1 + 0.5 (0.5 · 4 + 0.5 · 6) = 3.5."""
    assert returns_of([1.0, 2.0], [4.0, 8.0], [1.0, 1.0], gamma=0.5, lambda_=0.5) == [3.5, 6.0]


def test_lambda_is_between_one_step_and_all_rewards() -> None:
    reward, value, continues = [1.0, 2.0, 4.0], [10.0, 20.0, 40.0], [1.0, 1.0, 1.0]
    assert returns_of(reward, value, continues, gamma=0.5, lambda_=0.0) == [6.0, 12.0, 24.0]
    assert returns_of(reward, value, continues, gamma=0.5, lambda_=1.0) == [8.0, 14.0, 24.0]


def test_nothing_is_earned_beyond_a_terminal_state() -> None:
    """The second step terminates: R_1 = 2, R_0 = 1 + 0.5 (0.5 · 4 + 0.5 · 2) = 2.5; what follows is on its own."""
    result = returns_of([1.0, 2.0, 7.0], [4.0, 8.0, 2.0], [1.0, 0.0, 1.0], gamma=0.5, lambda_=0.5)
    assert result == [2.5, 2.0, 8.0]


def test_lambda_return_equals_torchrl() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 20, 9, generator=generator)
    ended = torch.rand(20, 9, generator=generator) < 0.2
    ours = lambda_return(reward, value, (~ended).float(), gamma=0.97, lambda_=0.9)
    theirs = td_lambda_return_estimate(
        0.97, 0.9, value[..., None], reward[..., None], done=ended[..., None], terminated=ended[..., None]
    )
    torch.testing.assert_close(ours, theirs[..., 0])


def test_lambda_return_rejects_other_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        lambda_return(torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3, 2), gamma=0.9, lambda_=0.9)
