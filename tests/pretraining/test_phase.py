"""One phase of pretraining on a model of a single weight, whose steps can be worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tensordict import TensorDict
from torch import Tensor, nn

from mbrl.pretraining.phase import Phase, learning_rate

PLAIN = {
    "steps": 4, "warmup": 0, "final_learning_rate_share": 1.0, "clip_norm": 1e9, "accumulate": 1, "ema_decay": 0.0,
    "seed": 0,
}  # fmt: skip


class Squares(nn.Module):
    """The loss is the mean of (weight - x)² over a batch's x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("drawn", torch.zeros(()))

    def forward(self, batch: TensorDict) -> dict[str, Tensor]:
        if self.training:
            self.drawn.copy_(torch.rand(()))
        loss = (self.weight - batch["x"]).square().mean()
        return {"loss": loss, "drawn": self.drawn.clone()}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.squares = Squares()
        self.objectives = {"squares": self.squares}
        self.optimizers = {"squares": torch.optim.SGD(self.squares.parameters(), lr=0.5)}

    def save_pretrained(self, folder: str | Path) -> None:
        raise NotImplementedError


def batches(*values: list[float]):
    return iter([TensorDict(x=torch.tensor(row), batch_size=[len(row)]) for row in values])


def phase(folder: Path, model: Model | None = None, **options: Any) -> tuple[Phase, Model]:
    model = model or Model()
    return Phase("squares", model, Accelerator(cpu=True), folder, **{**PLAIN, **options}), model


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (3, 1.0), (4, 1.0), (8, 0.55), (12, 0.1), (99, 0.1)])
def test_learning_rate_rises_then_falls_along_a_cosine(step, share):
    assert learning_rate(step, steps=12, warmup=4, final=0.1) == pytest.approx(share)


def test_accumulation_equals_the_joint_batch(tmp_path):
    joint, one = phase(tmp_path / "a")
    parts, other = phase(tmp_path / "b", accumulate=2)
    joint.take_step(batches([1.0, 2.0, 3.0, 6.0]))
    metrics = parts.take_step(batches([1.0, 2.0], [3.0, 6.0]))
    assert one.squares.weight.item() == other.squares.weight.item() == pytest.approx(3.0)  # 0 - 0.5 * 2 * (0 - mean)
    assert metrics["loss"].item() == pytest.approx(12.5)
    assert metrics["gradient_norm"].item() == pytest.approx(6.0)


def test_gradients_are_clipped(tmp_path):
    trained, model = phase(tmp_path, clip_norm=0.1)
    trained.take_step(batches([10.0]))
    assert model.squares.weight.item() == pytest.approx(0.05, rel=1e-3)


def test_running_mean_of_the_weights_is_what_is_evaluated_and_kept(tmp_path):
    trained, model = phase(tmp_path, ema_decay=0.75)
    trained.take_step(batches([1.0]))  # weight 1, the mean starts there
    trained.take_step(batches([5.0]))  # weight 5, mean 0.75 * 1 + 0.25 * 5
    with trained.evaluating():
        assert model.squares.weight.item() == pytest.approx(2.0)
        assert not model.squares.training and not torch.is_grad_enabled()
    assert model.squares.weight.item() == pytest.approx(5.0) and model.squares.training
    trained.finish()
    assert model.squares.weight.item() == pytest.approx(2.0)


def test_what_is_not_finite_changes_nothing(tmp_path):
    trained, model = phase(tmp_path)
    trained.take_step(batches([1.0]))
    message = r"the squares's loss is nan .* at its step 1: lower squares\.learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        trained.take_step(batches([float("nan")]))
    assert model.squares.weight.item() == pytest.approx(1.0)


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_goes_on_from_its_checkpoint(tmp_path, ema_decay):
    values = [[1.0], [2.0], [4.0], [3.0]]
    whole, model = phase(tmp_path / "whole", ema_decay=ema_decay, final_learning_rate_share=0.0)
    first, _ = phase(tmp_path / "parts", ema_decay=ema_decay, final_learning_rate_share=0.0)
    for value in values:
        torch.rand(3)  # what others draw must not matter
        last = whole.take_step(batches(value))
    for value in values[:2]:
        first.take_step(batches(value))
    first.save()
    second, resumed = phase(tmp_path / "parts", ema_decay=ema_decay, final_learning_rate_share=0.0)
    assert second.step == 2
    for value in values[2:]:
        metrics = second.take_step(batches(value))
    assert {k: v.item() for k, v in metrics.items()} == {k: v.item() for k, v in last.items()}
    for one in (whole, second):
        one.finish()
    assert resumed.squares.weight.item() == model.squares.weight.item()
