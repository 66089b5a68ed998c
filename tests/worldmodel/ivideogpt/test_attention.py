"""Attention in plain products and by torch's kernel, and the rotary positions."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.ivideogpt.attention import PLAIN_SCORES, attention, causal_attention, rope_table, rotate


def heads(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(length)
    q, k, v = torch.randn(3, 2, 4, length, 16).to(dtype)
    return q, k, v


@pytest.mark.parametrize("length", [33, math.isqrt(PLAIN_SCORES // 8) + 1])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_attention_to_all_is_the_weighed_mean(dtype: torch.dtype, within: float, length: int) -> None:
    q, k, v = heads(length, dtype)
    q = q[:, :, :17] if length < 100 else q
    weights = (q.float() @ k.float().transpose(-1, -2) / 4).softmax(-1)
    torch.testing.assert_close(attention(q, k, v).float(), weights @ v.float(), atol=within, rtol=within)


def test_both_ways_have_the_same_gradients() -> None:
    q, k, v = heads(40, torch.bfloat16)
    for x in (q, k, v):
        x.requires_grad_()
    plain = torch.autograd.grad(attention(q, k, v).square().sum(), (q, k, v))
    fused = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    exact = torch.autograd.grad(fused.square().sum(), (q, k, v))
    for mine, theirs in zip(plain, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_of_the_scores_may_be_in_the_queries(dtype: torch.dtype) -> None:
    q, k, v = heads(24, dtype)
    scaled = causal_attention(q / 4, k, v, scale=1.0)
    torch.testing.assert_close(scaled, causal_attention(q, k, v), atol=0.02, rtol=0.02)


def test_rotary_scores_depend_on_distance_alone() -> None:
    cos, sin = rope_table(64, 8)
    q, k = torch.randn(2, 8)
    turned_q, turned_k = rotate(q.expand(64, 8), cos, sin), rotate(k.expand(64, 8), cos, sin)
    assert torch.equal(turned_q[0], q)
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[10:, 10:], scores[:-10, :-10], atol=1e-4, rtol=1e-4)
    angle = torch.tensor(3.0)  # the first pair (0, 4) turns by one radian a position
    expected = torch.stack([q[0] * angle.cos() - q[4] * angle.sin(), q[4] * angle.cos() + q[0] * angle.sin()])
    torch.testing.assert_close(turned_q[3, [0, 4]], expected)


def test_dropped_weights_are_the_same_in_the_backward_pass() -> None:
    q, k, _ = heads(30, torch.float32)
    v = torch.eye(30).expand(2, 4, 30, 30).clone().requires_grad_()  # the result is the weights themselves
    q.requires_grad_()
    weights = causal_attention(q, k, v, dropout=0.5)
    gradient = torch.autograd.grad(weights.sum(), v)[0]  # [.., key, :]: the sum over queries of the key's weights
    torch.testing.assert_close(gradient[..., 0], weights.sum(-2), atol=1e-5, rtol=1e-5)
    assert float((weights == 0).float().mean()) > 0.6  # the future, and half of the past
