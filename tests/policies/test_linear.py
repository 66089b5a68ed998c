"""Linear layers: by oneDNN they are those of PyTorch to rounding, and elsewhere to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded

from policies import linear
from policies.linear import LEAST_WORK, Linear, members_affine
from policies.sac import SAC

ROWS, INPUTS, OUTPUTS = 144, 160, 96
assert ROWS * INPUTS * OUTPUTS >= LEAST_WORK
onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of oneDNN's outputs so far, on a processor on which it is taken to be faster."""
    found: list[tuple[int, ...]] = []
    product = linear._product

    def recorded(*arguments: Tensor) -> Tensor:
        outputs = product(*arguments)
        found.append(tuple(outputs.shape))
        return outputs

    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "_product", recorded)
    return found


def layers() -> tuple[Linear, nn.Linear]:
    """Two layers of equal weights."""
    torch.manual_seed(0)
    ours, theirs = Linear(INPUTS, OUTPUTS), nn.Linear(INPUTS, OUTPUTS)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(layer: nn.Linear, inputs: Tensor, weights: Tensor) -> list[Tensor | None]:
    """Gradients of the inputs, the weight and the bias."""
    leaf = inputs.detach().requires_grad_()
    layer.zero_grad()
    (layer(leaf) * weights).sum().backward()
    return [leaf.grad, layer.weight.grad, layer.bias.grad]


@onednn
@pytest.mark.parametrize(
    "inputs",
    [
        torch.randn(ROWS, INPUTS),
        torch.randn(INPUTS, ROWS).t(),
        torch.randn(ROWS, 2 * INPUTS)[:, ::2],
        torch.randn(INPUTS).expand(ROWS, -1),
        torch.randn(ROWS, 1).expand(-1, INPUTS),
    ],
    ids=["contiguous", "transposed", "strided", "one row", "one column"],
)
@pytest.mark.parametrize(
    "weights", [torch.randn(ROWS, OUTPUTS), torch.tensor(2.0)], ids=["gradients", "equal gradients"]
)
def test_values_and_gradients_are_those_of_pytorch(
    inputs: Tensor, weights: Tensor, products: list[tuple[int, ...]]
) -> None:
    ours, theirs = layers()
    for mode in (torch.no_grad, torch.inference_mode, nullcontext):
        with mode():
            torch.testing.assert_close(ours(inputs), theirs(inputs))
    assert products == 3 * [(ROWS, OUTPUTS)]
    del products[:]
    for found, expected in zip(gradients(ours, inputs, weights), gradients(theirs, inputs, weights), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert products == [(ROWS, OUTPUTS), (ROWS, INPUTS), (OUTPUTS, INPUTS)]


@onednn
def test_only_the_gradients_that_are_needed_are_computed(products: list[tuple[int, ...]]) -> None:
    ours, _ = layers()
    inputs = torch.randn(ROWS, INPUTS)
    ours(inputs).sum().backward()
    assert products == [(ROWS, OUTPUTS), (OUTPUTS, INPUTS)]
    del products[:]
    ours.requires_grad_(False)(inputs.requires_grad_()).sum().backward()
    assert products == [(ROWS, OUTPUTS), (ROWS, INPUTS)]


@onednn
def test_leading_dimensions_are_rows_to_onednn(products: list[tuple[int, ...]]) -> None:
    ours, theirs = layers()
    inputs = torch.randn(2, ROWS + 1, INPUTS)[:, :-1]  # rollouts without their last step: not contiguous
    weights = torch.randn(2, ROWS, OUTPUTS)
    torch.testing.assert_close(ours(inputs), theirs(inputs))
    del products[:]
    for found, expected in zip(gradients(ours, inputs, weights), gradients(theirs, inputs, weights), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert products == [(2 * ROWS, OUTPUTS), (2 * ROWS, INPUTS), (OUTPUTS, INPUTS)]


@onednn
def test_gradients_of_two_calls_add_up() -> None:
    ours, theirs = layers()
    batches = torch.randn(2, ROWS, INPUTS)
    for layer in (ours, theirs):
        (layer(batches[0]) * layer(batches[1])).sum().backward()
        layer(batches[1]).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-3, rtol=1e-5)


@onednn
def test_a_gradient_penalty_has_the_gradients_of_pytorch() -> None:
    found = []
    for layer in layers():
        torch.manual_seed(1)
        inputs = torch.randn(ROWS, INPUTS, requires_grad=True)
        (slope,) = torch.autograd.grad(layer(inputs).square().sum(), inputs, create_graph=True)
        slope.square().sum().backward()
        found.append((inputs.grad, layer.weight.grad, layer.bias.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-4)


@onednn
def test_weights_that_were_written_between_forward_and_backward_are_refused() -> None:
    ours, _ = layers()
    values = ours(torch.randn(ROWS, INPUTS, requires_grad=True))
    with torch.no_grad():
        ours.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


@pytest.mark.parametrize(
    "shape",
    [(31, INPUTS), (0, INPUTS), (INPUTS,)],
    ids=["few rows", "no rows", "one vector"],
)
def test_other_shapes_are_multiplied_by_pytorch(shape: tuple[int, ...], products: list[tuple[int, ...]]) -> None:
    ours, theirs = layers()
    inputs = torch.randn(shape)
    assert torch.equal(ours(inputs), theirs(inputs)) and not products
    for found, expected in zip(
        gradients(ours, inputs, torch.tensor(2.0)), gradients(theirs, inputs, torch.tensor(2.0)), strict=True
    ):
        assert torch.equal(found, expected)
    assert not products


def autocast() -> AbstractContextManager[None]:
    return torch.autocast("cpu", torch.bfloat16)


def without_onednn() -> AbstractContextManager[None]:
    return torch.backends.mkldnn.flags(enabled=False, allow_tf32=None, fp32_precision=None)


@pytest.mark.parametrize("context", [autocast, without_onednn])
def test_autocast_and_a_switched_off_onednn_are_heeded(
    context: Callable[[], AbstractContextManager[None]], products: list[tuple[int, ...]]
) -> None:
    ours, theirs = layers()
    inputs = torch.randn(ROWS, INPUTS)
    with context():
        assert torch.equal(ours(inputs), theirs(inputs)) and ours(inputs).dtype == theirs(inputs).dtype
    assert not products


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_multiplied_by_pytorch(dtype: torch.dtype, products: list[tuple[int, ...]]) -> None:
    ours, theirs = (layer.to(dtype) for layer in layers())
    inputs = torch.randn(ROWS, INPUTS, dtype=dtype)
    assert torch.equal(ours(inputs), theirs(inputs)) and not products
    with pytest.raises(RuntimeError, match="same dtype"):
        ours(inputs.float())


def test_where_mkl_is_faster_the_layer_is_pytorchs(
    monkeypatch: pytest.MonkeyPatch, products: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)
    ours, theirs = layers()
    inputs = torch.randn(ROWS, INPUTS)
    assert torch.equal(ours(inputs), theirs(inputs)) and not products


@pytest.mark.parametrize("wrap", [torch.vmap, partial(torch.compile, backend="eager", fullgraph=True)])
def test_vmap_and_compilation_see_a_layer_of_pytorch(
    wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]], products: list[tuple[int, ...]]
) -> None:
    ours, theirs = layers()
    inputs = torch.randn(2, ROWS, INPUTS)
    found = wrap(ours)(inputs if wrap is torch.vmap else inputs[0])
    torch.testing.assert_close(found, theirs(inputs if wrap is torch.vmap else inputs[0]))
    assert not products


def test_initial_weights_and_random_numbers_are_those_of_pytorch() -> None:
    found = []
    for kind in (Linear, nn.Linear):
        torch.manual_seed(3)
        found.append((kind(INPUTS, OUTPUTS).state_dict(), torch.rand(1)))
    (ours, after_ours), (theirs, after_theirs) = found
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(after_ours, after_theirs)


@onednn
def test_products_of_members_are_those_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, products: list[tuple[int, ...]]
) -> None:
    sizes = ((ROWS, INPUTS), (2, INPUTS, OUTPUTS), (2, 1, OUTPUTS))
    parts, found = [torch.randn(size) for size in sizes], []
    weights = torch.randn(2, ROWS, OUTPUTS)
    for faster in (True, False):
        monkeypatch.setattr(linear, "onednn_is_faster", lambda faster=faster: faster)
        rows, weight, bias = (part.clone().requires_grad_() for part in parts)
        outputs = members_affine(rows.expand(2, -1, -1), weight, bias)
        (outputs * weights).sum().backward()
        found.append((outputs, rows.grad, weight.grad, bias.grad))
    assert len(products) == 2 * 3  # of each member: outputs, and gradients of inputs and weight
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@onednn
def test_updates_of_sac_are_the_same_to_rounding(
    monkeypatch: pytest.MonkeyPatch, products: list[tuple[int, ...]]
) -> None:
    rows, states, actions = 256, 39, 4
    torch.manual_seed(0)
    spec = Composite(state=Unbounded((states,)))
    ours = SAC(spec, Bounded(-1.0, 1.0, (actions,)), learning_rate=1e-3, weight_decay=0.1)
    theirs = copy.deepcopy(ours)
    following = {
        "state": torch.randn(rows, states),
        "reward": torch.rand(rows, 1),
        "terminated": torch.rand(rows, 1) > 0.9,
    }
    batch = TensorDict(
        {
            "state": torch.randn(rows, states),
            "action": torch.rand(rows, actions) * 2 - 1,
            "gamma": torch.full((rows, 1), 0.97),
            "next": TensorDict(following, [rows]),
        },
        [rows],
    )
    for _ in range(3):
        results = []
        for policy, faster in ((ours, True), (theirs, False)):
            monkeypatch.setattr(linear, "onednn_is_faster", lambda faster=faster: faster)
            torch.manual_seed(1)
            results.append({name: float(value) for name, value in policy.update(batch).items()})
            # Without gradients 6; the critics' loss 4 and 6; the actor's 6 and 7, none of them the critics' gradients.
            assert len(products) == (6 + 10 + 13 if faster else 0)
            del products[:]
        assert results[0] == pytest.approx(results[1], rel=1e-3)


@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        ("AuthenticAMD\nflags: avx2 avx512f avx512_bf16", True),
        ("AuthenticAMD\nflags: avx2 fma", False),
        ("GenuineIntel\nflags: avx2 avx512f", False),
        (None, False),
    ],
    ids=["AMD with AVX-512", "AMD with AVX2", "Intel", "not Linux"],
)
def test_onednn_multiplies_on_amd_with_avx512_alone(
    processor: str | None, faster: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # of the fixture's processor
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "cpuinfo")
    assert linear.onednn_is_faster.__wrapped__() is faster
