"""n-step returns worked out by hand."""

import pytest
import torch

from policies.returns import n_step


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
