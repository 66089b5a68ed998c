"""DrQ-v2: shifts, targets, schedules, resume and learning."""

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.drqv2 import DrQV2
from policies.frames_actor import noisy
from policies.networks import bounded, random_shift, shift

ACTIONS = Bounded(-1.0, 1.0, (2,))
PIXELS = Composite(frames=Bounded(0, 255, (9, 16, 16), dtype=torch.uint8))


def small(**changes: object) -> DrQV2:
    sizes = {
        "encoder_channels": (8, 8),
        "encoder_strides": (2, 2),
        "feature_size": 8,
        "hidden_size": 16,
        "shift_pad": 2,
    }
    return DrQV2(PIXELS, ACTIONS, **(sizes | changes))


def random_batch(rows: int = 6) -> TensorDict:
    frames = torch.randint(0, 256, (2, rows, 9, 16, 16), dtype=torch.uint8)
    following = TensorDict(
        frames=frames[1], reward=torch.rand(rows, 1), terminated=torch.rand(rows, 1) < 0.5, batch_size=[rows]
    )
    action = torch.rand(rows, 2) * 2 - 1
    return TensorDict(
        frames=frames[0], action=action, gamma=torch.full((rows, 1), 0.9), next=following, batch_size=[rows]
    )


def grid_sample_shift(frames: Tensor, down: Tensor, right: Tensor, pad: int) -> Tensor:
    """The published augmentation: replicate the border, then read a shifted grid with interpolation."""
    rows, _, size, _ = frames.shape
    padded = F.pad(frames.float(), (pad,) * 4, mode="replicate")
    wide = size + 2 * pad
    line = torch.linspace(-1 + 1 / wide, 1 - 1 / wide, wide)[:size]
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    offset = torch.stack((right + pad, down + pad), dim=-1).float() * (2 / wide)
    return F.grid_sample(padded, grid + offset.view(rows, 1, 1, 2), padding_mode="zeros", align_corners=False)


def test_shift_equals_the_published_grid_sample() -> None:
    torch.manual_seed(0)
    pad = 4
    offsets = torch.arange(-pad, pad + 1)
    down, right = torch.cartesian_prod(offsets, offsets).unbind(1)  # all 81 shifts
    frames = torch.randint(0, 256, (len(down), 3, 12, 12), dtype=torch.uint8)
    exact = shift(frames, down, right)
    assert exact.dtype == torch.uint8
    # grid_sample interpolates between whole pixels only by its rounding error.
    torch.testing.assert_close(exact.float(), grid_sample_shift(frames, down, right, pad), atol=2e-2, rtol=0)


def test_shift_repeats_the_border() -> None:
    frames = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    moved = shift(frames, torch.tensor([1]), torch.tensor([-1]))
    assert moved.tolist() == [[[[3, 3, 4], [6, 6, 7], [6, 6, 7]]]]


def test_random_shift_draws_every_offset_for_each_image() -> None:
    torch.manual_seed(0)
    frames = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5).expand(500, 1, 5, 5)
    centres = random_shift(frames, pad=1)[:, 0, 2, 2]
    assert sorted(set(centres.tolist())) == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert torch.equal(random_shift(frames, pad=0), frames)


def test_noise_is_clipped_and_the_gradient_passes_straight() -> None:
    torch.manual_seed(0)
    mean = torch.full((1000, 1), 0.9, requires_grad=True)
    action = noisy(mean, torch.tensor(1.0), clip=0.3)
    assert action.min().item() == pytest.approx(0.6)
    assert action.max().item() == 1.0
    action.sum().backward()
    assert mean.grad is not None and bool((mean.grad == 1.0).all())


class LinearCritic(nn.Module):
    """Values that can be worked out by hand: head i says weight_i * (sum of the actions + 1)."""

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        value = action.sum(dim=-1, keepdim=True) + 1.0
        return torch.stack((3.0 * value, 2.0 * value))


def test_target_by_hand() -> None:
    policy = small(std_start=0.0, std_end=0.0)
    policy.target_critic = LinearCritic()
    nn.init.zeros_(policy.actor.head[-1].weight)
    nn.init.constant_(policy.actor.head[-1].bias, float(torch.atanh(torch.tensor(0.25))))  # each action 0.25
    following = TensorDict(
        reward=torch.tensor([[5.0], [5.0]]), terminated=torch.tensor([[False], [True]]), batch_size=[2]
    )
    batch = TensorDict(gamma=torch.tensor([[0.5], [0.5]]), next=following, batch_size=[2])
    features = torch.zeros(2, policy.actor.encoder.out_features)
    # The smaller head: 2 * (0.25 + 0.25 + 1) = 3. Not terminated: 5 + 0.5 * 3; terminated: 5.
    torch.testing.assert_close(policy.target(features, batch), torch.tensor([[6.5], [5.0]]))


def test_update_moves_what_it_should() -> None:
    torch.manual_seed(0)
    policy = small(target_rate=0.25)
    before = copy.deepcopy(policy)
    metrics = policy.update(random_batch())
    assert set(metrics) == {"critic_loss", "actor_loss", "saturated", "q", "target_q", "std", "batch_reward"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    for name, moved in policy.named_parameters():
        assert not torch.equal(moved, before.get_parameter(name)), name
    for name, target in policy.target_critic.named_parameters():
        expected = before.target_critic.get_parameter(name).lerp(policy.critic.get_parameter(name), 0.25)
        torch.testing.assert_close(target, expected)


def test_the_actor_loss_trains_neither_encoder_nor_critics() -> None:
    policy = small()
    frozen = {
        name: value.clone()
        for name, value in policy.named_parameters()
        if not name.startswith(("actor.trunk", "actor.head"))
    }
    policy._update_actor(torch.rand(4, policy.actor.encoder.out_features), TensorDict())
    for name, value in frozen.items():
        assert torch.equal(policy.get_parameter(name), value), name


def test_noise_schedule_is_linear_in_env_steps_and_saved() -> None:
    policy = small(std_start=1.0, std_end=0.1, std_env_steps=1000)
    levels = []
    for steps in (0, 500, 1000, 5000):
        policy.set_env_steps(steps)
        levels.append(float(policy.actor.std()))
    assert levels == pytest.approx([1.0, 0.55, 0.1, 0.1])
    other = small(std_start=1.0, std_end=0.1, std_env_steps=1000)
    other.load_state_dict(policy.state_dict())
    assert int(other.actor.env_steps) == 5000


def test_actor_explores_unless_told_not_to() -> None:
    policy = small()
    step = TensorDict(frames=torch.randint(0, 256, (5, 9, 16, 16), dtype=torch.uint8), batch_size=[5])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = policy.actor(step.clone())["action"], policy.actor(step.clone())["action"]
        torch.testing.assert_close(first, policy.actor.mean(policy.actor.encoder(step["frames"])))
        single = policy.actor(step[0].clone())["action"]
    assert torch.equal(first, second)
    torch.testing.assert_close(single, first[0])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        noise = policy.actor(step.clone())["action"] - first
    assert bool(noise.any())
    assert bool((first + noise).abs().le(1.0).all())


def test_resumes_to_the_bit() -> None:
    torch.manual_seed(1)
    batch = random_batch()
    policy = small()
    policy.update(batch)
    saved = copy.deepcopy((policy.state_dict(), {name: opt.state_dict() for name, opt in policy.optimizers.items()}))
    state = torch.get_rng_state()
    policy.update(batch)
    resumed = small()
    resumed.load_state_dict(saved[0])
    for name, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(saved[1][name])
    torch.set_rng_state(state)
    resumed.update(batch)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def critic_loss(batch: TensorDict, **changes: object) -> Tensor:
    """Of the first update, with the same weights and noise each time."""
    torch.manual_seed(3)
    return small(**changes).update(batch)["critic_loss"]


def test_bytes_and_floats_learn_alike() -> None:
    batch = random_batch()
    floats = batch.clone()
    floats["frames"], floats["next", "frames"] = batch["frames"].float(), batch["next", "frames"].float()
    assert torch.equal(critic_loss(batch), critic_loss(floats))


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(4)
    batch = random_batch()
    torch.testing.assert_close(critic_loss(batch, precision="bfloat16"), critic_loss(batch), rtol=0.1, atol=0.02)
    with pytest.raises(ValueError, match="precision is float32 or bfloat16"):
        small(precision="float16")


def test_rejects_a_schedule_of_no_length() -> None:
    with pytest.raises(ValueError, match="std_env_steps is 0"):
        small(std_env_steps=0)


def test_nan_stops_the_run() -> None:
    batch = random_batch()
    batch["next", "reward"][0] = float("nan")
    with pytest.raises(FloatingPointError, match="critic_loss = nan"):
        small().update(batch)


def test_needs_frames_and_bounded_actions() -> None:
    with pytest.raises(ValueError, match=r"env\.pixels=true.*env\.frame_stack"):
        DrQV2(Composite(state=Unbounded(39)), ACTIONS)
    with pytest.raises(ValueError, match="in \\[-1, 1\\]"):
        DrQV2(PIXELS, Bounded(-2.0, 2.0, (2,)))


def test_gradients_are_inverted_at_the_bounds() -> None:
    """Scaled by the distance to the bound that a descent along the gradient would move to, over 2."""
    output = torch.tensor([0.0, 0.5, 0.5, 2.0, 2.0, -1.0], requires_grad=True)
    clipped = bounded(output)
    assert clipped.tolist() == [0.0, 0.5, 0.5, 1.0, 1.0, -1.0]
    clipped.backward(torch.tensor([-1.0, -1.0, 1.0, -1.0, 1.0, 1.0]))
    assert output.grad is not None
    assert output.grad.tolist() == [-0.5, -0.25, 0.75, 0.5, 1.5, 0.0]


def test_outputs_that_are_always_pushed_outwards_stay_near_the_bound() -> None:
    output = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([output], lr=0.01)
    for _ in range(1000):
        optimizer.zero_grad()
        (-bounded(output) * torch.tensor([1.0, 10.0, -1.0])).sum().backward()
        optimizer.step()
    torch.testing.assert_close(output.detach(), torch.tensor([1.0, 1.0, -1.0]), atol=0.05, rtol=0)


def test_rejects_an_unknown_squash() -> None:
    with pytest.raises(ValueError, match="squash is tanh or inverted_gradients, not clip"):
        small(squash="clip")


def test_values_are_those_that_the_critics_learn() -> None:
    policy, batch = small(), random_batch()
    values = policy.values(batch, batch["action"])
    assert values.shape == (6, 1)
    both = policy.critic(policy.actor.encode(batch), batch["action"])
    torch.testing.assert_close(values, (both[0] + both[1]) / 2)


def test_noise_is_limited_for_a_while() -> None:
    policy = small(std_start=1.0, std_end=0.1, std_env_steps=100)
    with policy.limited_noise(0.2):
        assert float(policy.actor.std()) == pytest.approx(0.2)
        policy.set_env_steps(1000)
        assert float(policy.actor.std()) == pytest.approx(0.1), "less where the schedule is below"
    policy.set_env_steps(0)
    assert float(policy.actor.std()) == 1.0


def test_a_hidden_layer_reads_the_embedding_and_learns_from_the_critics_alone() -> None:
    policy = small(embedding_size=5, embedding_hidden=7, shift_pad=0)
    batch = random_batch()
    for part in (batch, batch["next"]):
        part["embedding"] = torch.randn(6, 5)
    layer = policy.actor.encoder[0][0]
    assert layer.weight.shape == (7, 5) and policy.critic.trunk[0][0].weight.shape == (8, 7)
    assert (policy.actor.encode(batch) >= 0).all(), "ReLU"
    before = layer.weight.detach().clone()
    policy._update_actor(policy.actor.encode(batch).detach(), batch)
    assert torch.equal(layer.weight, before)
    policy.update(batch)
    assert not torch.equal(layer.weight, before)
