"""TD-MPC2's latent dynamics: known answers of its parts, and what its loss weighs and reaches."""

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded

from worldmodel.tdmpc2.mish import Mish
from worldmodel.tdmpc2.model import TDMPC2Dynamics
from worldmodel.tdmpc2.networks import PixelEncoder, SimNorm

LATENT, ACTIONS = 8, 8


def make(**settings: Any) -> TDMPC2Dynamics:
    specs = Composite(state=Unbounded((LATENT,)), frames=Bounded(0, 255, (9, 17, 17), dtype=torch.uint8))
    sizes = {"latent_size": LATENT, "width": 16, "encoder_width": 16}
    return TDMPC2Dynamics(specs, Bounded(-1, 1, (ACTIONS,)), **{"pixels": False, **sizes, **settings})


def segments(state: torch.Tensor) -> TensorDict:
    rows = state.shape[:2]
    after = TensorDict(reward=torch.zeros(*rows, 1), batch_size=rows)
    return TensorDict(state=state, action=torch.zeros(*rows, ACTIONS), next=after, batch_size=rows)


def test_mish_is_torchs() -> None:
    ends = torch.tensor([-1e30, 1e30])
    ours, theirs = (torch.cat((torch.linspace(-100, 100, 2001), ends)).requires_grad_() for _ in range(2))
    found, expected = Mish()(ours), nn.Mish()(theirs)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_simnorm_is_a_softmax_in_each_group() -> None:
    values = torch.tensor([0.0, math.log(3), 5.0, 5.0])
    torch.testing.assert_close(SimNorm(2)(values), torch.tensor([0.25, 0.75, 0.5, 0.5]))


def test_latent_states_are_simplices_encoded_and_predicted() -> None:
    model = make(latent_size=16)
    latent = model.encode(TensorDict(state=torch.randn(3, 5, LATENT), batch_size=[3, 5]))
    following = model.advance(latent, torch.randn(3, 5, ACTIONS))
    for states in (latent, following):
        assert states.shape == (3, 5, 16) and states.min() >= 0
        torch.testing.assert_close(states.unflatten(-1, (2, 8)).sum(-1), torch.ones(3, 5, 2))


def test_rewards_are_two_hot_codes_in_symlog_space() -> None:
    model = make()
    latent, action = torch.rand(4, LATENT), torch.rand(4, ACTIONS)
    assert model.reward(latent, action).abs().max() < 1e-6, "0 before it has learned"
    with torch.no_grad():  # 25 % on bin 1.0 and 75 % on bin 1.2, of 101 from -10 to 10
        model.reward_head[-1].bias.fill_(-1e9)
        model.reward_head[-1].bias[55:57] = torch.tensor([0.25, 0.75]).log()
    expected = math.expm1(0.25 * 1.0 + 0.75 * 1.2)
    torch.testing.assert_close(model.reward(latent, action), torch.full((4, 1), expected))


def test_the_losses_of_later_steps_weigh_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions are off by 1, 2 and 3, so that the weighted mean of squares is (1 + 0.5 * 4 + 0.25 * 9) / 3."""
    model = make()
    monkeypatch.setattr(model, "encode", lambda observed: observed["state"])
    monkeypatch.setattr(model, "advance", lambda latent, action: latent + 1)
    learned = model.learn(segments(torch.zeros(2, 4, LATENT)), torch.tensor([1.0, 0.5, 0.25]))
    assert float(learned.metrics["consistency_loss"]) == pytest.approx(1.75)
    reward = 1.75 / 3 * math.log(101)  # of a uniform distribution
    assert float(learned.metrics["reward_loss"]) == pytest.approx(reward, rel=1e-5)
    assert learned.loss.item() == pytest.approx(20 * 1.75 + 0.1 * reward, rel=1e-5)
    assert learned.latent[0, :, 0].tolist() == [0, 1, 2, 3]


def test_each_reward_is_compared_with_its_own_prediction() -> None:
    """Predicted is bin 1.0 with 25 % and 1.2 with 75 %; earned are these two in different orders, weighted by step."""
    model, batch = make(), segments(torch.zeros(2, 3, LATENT))
    with torch.no_grad():
        model.reward_head[-1].bias.fill_(-30)
        model.reward_head[-1].bias[55:57] = torch.tensor([0.25, 0.75]).log()
    low, high = math.expm1(1.0), math.expm1(1.2)
    batch["next", "reward"] = torch.tensor([[low, high, 0.0], [low, low, 0.0]]).unsqueeze(-1)  # the last row's: unused
    learned = model.learn(batch, torch.tensor([1.0, 0.5]))
    expected = (math.log(4) + 0.5 * math.log(4 / 3) + math.log(4) + 0.5 * math.log(4)) / 4
    assert float(learned.metrics["reward_loss"]) == pytest.approx(expected, rel=1e-4)


def test_only_the_first_observation_is_encoded_with_a_gradient() -> None:
    model, states = make(), torch.randn(2, 4, LATENT, requires_grad=True)
    learned = model.learn(segments(states), torch.ones(3))
    assert learned.observed.shape == (2, 3, LATENT) and not learned.observed.requires_grad
    torch.testing.assert_close(learned.observed, model.encode(segments(states))[:, 1:].detach())
    learned.loss.backward()
    assert states.grad is not None and states.grad[:, 0].any() and not states.grad[:, 1:].any()


def test_the_encoder_learns_at_a_share_of_the_rate() -> None:
    model = make(learning_rate=1e-3)
    (optimizer,) = model.optimizers.values()
    encoder, others = optimizer.param_groups
    assert (encoder["lr"], others["lr"]) == (pytest.approx(3e-4), 1e-3)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in model.encoder.parameters()}
    learned = [*encoder["params"], *others["params"]]
    assert len(learned) == len(list(model.parameters()))


def test_frames_of_an_odd_side_are_encoded_and_shifted_only_to_learn_from() -> None:
    model = make(pixels=True, shift_pad=3)
    frames = torch.randint(256, (2, 4, 9, 17, 17), dtype=torch.uint8)
    batch = segments(torch.zeros(2, 4, LATENT)).set("frames", frames)
    assert torch.equal(model.encode(batch), model.encode(batch)) and model.encode(batch).shape == (2, 4, LATENT)
    first, again = (model.learn(batch, torch.ones(3)).observed for _ in range(2))
    assert not torch.equal(first, again)
    assert torch.equal(batch["frames"], frames), "the batch is left as it was"


def test_the_published_encoder_has_no_layer_behind_its_convolutions() -> None:
    """Sides 29, 13, 6 and 4 after convolutions with kernels 7, 5, 3, 3 and strides 2, 2, 2, 1 leave 32 x 4 x 4."""
    encoder = PixelEncoder((9, 64, 64), 0, 512, SimNorm(8))
    convolutions = [part for part in encoder.convolutions if isinstance(part, nn.Conv2d)]
    weights = [convolution.weight.shape for convolution in convolutions]
    assert weights == [(32, 9, 7, 7), (32, 32, 5, 5), (32, 32, 3, 3), (32, 32, 3, 3)]
    assert [part.stride for part in convolutions] == [(2, 2), (2, 2), (2, 2), (1, 1)]
    assert len(list(encoder.parameters())) == 8 and isinstance(encoder.convolutions[-1], nn.Conv2d)
    frames = torch.randint(256, (2, 9, 64, 64), dtype=torch.uint8)
    expected = encoder.convolutions(frames / 255 - 0.5).flatten(1).unflatten(1, (64, 8)).softmax(-1).flatten(1)
    torch.testing.assert_close(encoder(frames), expected)


@pytest.mark.parametrize(
    ("side", "vectors", "latent", "convolutions", "features"),
    [(64, 0, 128, 4, 512), (64, 2, 512, 4, 514), (84, 0, 512, 4, 1152), (39, 0, 16, 4, 32), (38, 0, 16, 3, 288)],
)
def test_other_sizes_take_a_linear_layer(
    side: int, vectors: int, latent: int, convolutions: int, features: int
) -> None:
    encoder = PixelEncoder((9, side, side), vectors, latent, SimNorm(8))
    assert sum(isinstance(part, nn.Conv2d) for part in encoder.convolutions) == convolutions
    assert isinstance(encoder.convolutions[-1], nn.ReLU)
    assert [part.in_features for part in encoder.modules() if isinstance(part, nn.Linear)] == [features]
    parts = [name.split(".")[0] for name, _ in encoder.named_parameters()]
    assert parts == sorted(parts), "convolutions before the head: checkpoints hold moments by number"
    frames = torch.zeros(2, 3, 9, side, side, dtype=torch.uint8)
    assert encoder(frames, *([torch.zeros(2, 3, vectors)] if vectors else [])).shape == (2, 3, latent)


def test_pixels_are_centred() -> None:
    encoder, seen = PixelEncoder((3, 64, 64), 0, 512, SimNorm(8)), []
    encoder.convolutions[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64))
    torch.testing.assert_close(seen[0], torch.tensor([-0.5, -0.3, 0.5]).view(1, 3, 1, 1).expand(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_size": 12}, r"latent_size \(12\) must be a multiple of 8"),
        ({"pixels": True, "specs": Composite(state=Unbounded((3,)))}, "learns from frames"),
        ({"pixels": True, "specs": Composite(frames=Unbounded((9, 14, 14)))}, "at least 15 pixels, not .9, 14, 14."),
        ({"pixels": True, "specs": Composite(frames=Unbounded((9, 16, 20)))}, "square frames"),
        ({"specs": Composite(frames=Unbounded((9, 64, 64)))}, "learns from state"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    specs = settings.pop("specs", Composite(state=Unbounded((LATENT,))))
    with pytest.raises(ValueError, match=message):
        TDMPC2Dynamics(specs, Bounded(-1, 1, (2,)), **{"pixels": False, **settings})
