"""Metrics of the critics tell real rows of a batch from imagined ones."""

import torch
from tensordict import TensorDict

from policies.metrics import value_metrics


def test_means_over_real_and_imagined_rows() -> None:
    values = torch.tensor([[[1.0], [3.0], [10.0], [20.0]], [[3.0], [5.0], [10.0], [20.0]]])  # two critics, four rows
    target = torch.tensor([[0.0], [0.0], [4.0], [8.0]])
    imagined = torch.tensor([[False], [False], [True], [True]])
    metrics = value_metrics(values, target, TensorDict(imagined=imagined, batch_size=[4]))
    assert {name: float(value) for name, value in metrics.items()} == {
        "q": 9.0,
        "target_q": 3.0,
        "q_real": 3.0,
        "q_imagined": 15.0,
    }


def test_a_batch_of_one_kind_has_one_mean() -> None:
    assert set(value_metrics(torch.ones(1, 2, 1), torch.ones(2, 1), TensorDict(batch_size=[2]))) == {"q", "target_q"}
