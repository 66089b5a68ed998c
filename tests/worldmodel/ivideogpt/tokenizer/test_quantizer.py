"""Nearest codes, the straight-through gradient, running means and revival, on numbers worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.ivideogpt.tokenizer.quantizer import VectorQuantizer
from worldmodel.ivideogpt.tokenizer.settings import MovingAverage

STILL = MovingAverage(decay=1.0 - 1e-9, revive_below=0.1)  # codes stay where they are seeded


def quantizer(codebook: list[list[float]], **options: Any) -> VectorQuantizer:
    weight = torch.tensor(codebook)
    made = VectorQuantizer(*weight.shape, **options)
    made.load_state_dict({"embedding.weight": weight})
    return made


def test_nearest_code_and_loss_by_hand() -> None:
    vq = quantizer([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], commitment=0.5)
    latents = torch.tensor([[[0.6, 0.0], [0.1, 0.9]], [[0.0, 1.2], [9.0, 0.0]]])
    out = vq(latents)
    assert out.codes.tolist() == [[1, 0], [2, 1]]
    torch.testing.assert_close(out.latents, vq.embedding.weight[out.codes])
    squares = 0.4**2 + (0.1**2 + 0.9**2) + 0.8**2 + 8.0**2
    torch.testing.assert_close(out.loss, torch.tensor(1.5 * squares / 8))
    assert torch.equal(vq.encode(latents), out.codes)
    assert torch.equal(vq.embed(out.codes), vq.embedding.weight[out.codes])


def test_gradient_passes_straight_through() -> None:
    vq = quantizer([[0.0, 0.0], [1.0, 1.0]])
    latents = torch.rand(5, 2, requires_grad=True)
    upstream = torch.randn(5, 2)
    (vq(latents).latents * upstream).sum().backward()
    assert torch.equal(latents.grad, upstream)
    assert vq.embedding.weight.grad is None or not vq.embedding.weight.grad.any()


def test_loss_pulls_codes_and_latents_together() -> None:
    vq = quantizer([[0.0], [10.0]], commitment=0.25)
    latents = torch.tensor([[1.0]], requires_grad=True)
    vq(latents).loss.backward()
    assert latents.grad.item() == pytest.approx(0.25 * 2.0)
    assert vq.embedding.weight.grad.flatten().tolist() == pytest.approx([-2.0, 0.0])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vq = VectorQuantizer(32, 4)
    torch.nn.init.normal_(vq.embedding.weight)
    latents = torch.randn(3, 11, 4)
    whole = vq.encode(latents)
    monkeypatch.setattr("worldmodel.ivideogpt.tokenizer.quantizer.CHUNK", 7)
    assert torch.equal(vq.encode(latents), whole)
    by_distance = torch.cdist(latents.flatten(0, 1), vq.embedding.weight).argmin(1).view(3, 11)
    assert torch.equal(vq.encode(latents), by_distance)


def test_moving_average_follows_its_latents() -> None:
    vq = quantizer([[0.0], [10.0]], moving_average=MovingAverage(decay=0.5))
    assert not vq.embedding.weight.requires_grad
    out = vq(torch.tensor([[1.0], [3.0], [12.0], [12.0]]))
    assert out.codes.tolist() == [0, 0, 1, 1]
    # Before: usage 1 and sums equal to the codes. Now usage 0.5*1 + 0.5*1; sums 0.5*0 + 0.5*(1+3)/2, 0.5*10 + 0.5*12.
    assert vq.usage.tolist() == [1.0, 1.0]
    assert vq.embedding.weight.flatten().tolist() == [1.0, 11.0]


def test_new_codebook_is_seeded_from_the_first_training_batch() -> None:
    torch.manual_seed(0)
    vq = VectorQuantizer(8, 2, moving_average=STILL)
    latents = torch.randn(100, 2) + 50.0
    vq(latents)
    assert all((code == latents).all(1).any() for code in vq.embedding.weight)


def test_warm_up_passes_latents_through_then_seeds_and_quantises() -> None:
    torch.manual_seed(0)
    vq = VectorQuantizer(8, 2, moving_average=replace(STILL, warmup=2))
    latents = torch.randn(100, 2) + 50.0
    for _ in range(2):
        vq.eval()(latents)  # does not count
        out = vq.train()(latents)
        assert torch.equal(out.latents, latents) and float(out.loss) == 0.0 and not out.codes.any()
    out = vq(latents)
    assert all((code == latents).all(1).any() for code in vq.embedding.weight)
    torch.testing.assert_close(out.latents, vq.embedding.weight[out.codes])


def test_unused_codes_are_revived_from_the_batch_in_training_alone() -> None:
    torch.manual_seed(0)
    far = [[0.0, 0.0], [1.0, 0.0], [500.0, 500.0]]
    vq = quantizer(far, moving_average=MovingAverage(decay=0.8, revive_below=0.2))
    latents = torch.rand(64, 2)
    vq.eval()
    for _ in range(20):
        vq(latents)
    assert vq.embedding.weight.tolist() == far
    assert vq.usage.tolist() == [1.0, 1.0, 1.0]
    vq.train()
    for _ in range(9):  # usage falls to 0.8^8 = 0.17, below the threshold at the ninth batch
        assert vq.embedding.weight[2, 0].item() == pytest.approx(500.0)
        vq(latents)
    assert 0.0 <= vq.embedding.weight[2].max() <= 1.0


def test_revival_off_leaves_unused_codes_alone() -> None:
    vq = quantizer([[0.0], [500.0]])
    for _ in range(50):
        vq(torch.rand(8, 1))
    assert vq.embedding.weight.flatten().tolist() == [0.0, 500.0]
    assert set(vq.state_dict()) == {"embedding.weight"}


def test_codes_of_a_moving_average_stay_where_nothing_chooses_them() -> None:
    torch.manual_seed(0)
    vq = VectorQuantizer(4, 2, moving_average=MovingAverage())
    torch.nn.init.normal_(vq.embedding.weight, std=10.0)
    far = vq.embedding.weight.detach().clone()
    for _ in range(400):
        vq(far[:1].expand(8, 2))
    torch.testing.assert_close(vq.embedding.weight, far)


def test_quantises_in_float32_under_autocast() -> None:
    vq = quantizer([[1.0], [1.001]])
    with torch.autocast("cpu", torch.bfloat16):
        out = vq(torch.tensor([[1.0009]]))
    assert out.codes.item() == 1 and out.latents.dtype == torch.float32


def test_resumes_to_the_bit() -> None:
    def batches() -> list[Tensor]:
        return list(torch.randn(6, 32, 2, 3, generator=torch.Generator().manual_seed(1)))

    def made() -> VectorQuantizer:
        return VectorQuantizer(16, 3, moving_average=MovingAverage(decay=0.7, revive_below=0.3))

    torch.manual_seed(0)
    whole = made()
    for batch in batches()[:3]:
        whole(batch)
    saved, state = {k: v.clone() for k, v in whole.state_dict().items()}, torch.get_rng_state()
    ends = [whole(batch).codes for batch in batches()[3:]]
    resumed = made()
    resumed.load_state_dict(saved)
    torch.set_rng_state(state)
    for batch, end in zip(batches()[3:], ends, strict=True):
        assert torch.equal(resumed(batch).codes, end)
    states = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_an_empty_codebook_is_one_line() -> None:
    with pytest.raises(ValueError, match="at least one code") as caught:
        VectorQuantizer(0, 2)
    assert "\n" not in str(caught.value)
