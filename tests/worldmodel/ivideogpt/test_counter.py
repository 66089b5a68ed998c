"""A counter in a buffer whose value is known without reading it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from worldmodel.ivideogpt.counter import HostCounter


class Counting(nn.Module):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.counter = HostCounter()

    def count(self) -> int:
        return self.counter.add_one(self.seen)


def test_counts_in_the_buffer_and_reads_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Counting()
    assert module.count() == 1
    monkeypatch.setattr(Tensor, "__int__", None)
    assert [module.count(), module.count()] == [2, 3] and module.counter.value(module.seen) == 3
    assert module.seen.item() == 3


def test_what_else_writes_to_the_buffer_is_noticed() -> None:
    module, other = Counting(), Counting()
    module.count()
    other.load_state_dict(module.state_dict())
    assert other.count() == 2
    module.seen.fill_(7)
    assert module.counter.value(module.seen) == 7
    copied = copy.deepcopy(module)
    copied.seen = torch.tensor(1)
    assert copied.count() == 2 and module.count() == 8
