"""DreamerV3's world model: sizes, what it learns, and that it goes on from latent states."""

from math import log

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.modules import SymExpTwoHot
from torchrl.modules.functional import symexp, symlog
from torchrl.trainers.algorithms.dreamer_v3 import DreamerV3Optimizer

from worldmodel.rssm.model import RSSM
from worldmodel.rssm.recurrence import Latent

SPECS = Composite(pixels=Bounded(0, 255, (3, 16, 16), dtype=torch.uint8), state=Unbounded((3,)))
ACTIONS = Bounded(-1, 1, (2,))
KEYS = pytest.mark.parametrize("pixels", [True, False])


def small(pixels: bool = False, **changes: object) -> RSSM:
    torch.manual_seed(0)
    return RSSM(SPECS, ACTIONS, pixels=pixels, units=32, **({"learning_rate": 3e-3, "warmup": 10} | changes))


def segments(batch: int = 4, time: int = 6) -> TensorDict:
    shape = (batch, time)
    colours = torch.randint(0, 256, (*shape, 3, 1, 1), dtype=torch.uint8)  # of whole pictures
    return TensorDict(
        pixels=colours.expand(*shape, 3, 16, 16).clone(),
        state=torch.randn(*shape, 3),
        action=torch.rand(*shape, 2) * 2 - 1,
        next={"reward": torch.randn(*shape, 1), "terminated": torch.zeros(*shape, 1, dtype=torch.bool)},
        batch_size=shape,
    )


@pytest.mark.parametrize(
    ("units", "millions"), [(64, 0.62), (256, 9.6), (384, 21.6), (512, 38.4), (768, 86.2), (1024, 153.1)]
)
def test_one_dial_sets_the_size(units, millions):
    """The paper's 1M to 200M count actor and critic too: see test_dreamer."""
    specs = Composite(pixels=Bounded(0, 255, (3, 64, 64), dtype=torch.uint8))
    with torch.device("meta"):
        model = RSSM(specs, Bounded(-1, 1, (4,)), pixels=True, units=units)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_symlog_and_two_hot_by_hand():
    values = torch.tensor([0.0, 1.0, -3.0, 1000.0])
    torch.testing.assert_close(symlog(values), torch.tensor([0.0, log(2), -log(4), log(1001)]))
    torch.testing.assert_close(symexp(symlog(values)), values)
    two_hot = SymExpTwoHot(5)  # at symexp of -20, -10, 0, 10, 20
    assert two_hot.bins[2:4].tolist() == pytest.approx([0.0, 22025.4658], rel=1e-5)
    code = two_hot.encode(torch.tensor(22025.4658 / 4))
    torch.testing.assert_close(code, torch.tensor([0.0, 0.0, 0.75, 0.25, 0.0]), atol=1e-4, rtol=0)
    assert two_hot.loss(torch.zeros(5), torch.tensor(7.0)).item() == pytest.approx(log(5))


def test_laprop_with_adaptive_clipping_by_hand():
    """The gradient (30, 40) of weights (3, 4) is cut to 0.3 of their norm; a first step goes by its sign."""
    weights = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = DreamerV3Optimizer([weights], lr=0.1, warmup_steps=0)
    weights.grad = torch.tensor([30.0, 40.0])
    optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.tensor([2.9, 3.9]))
    clipped = optimizer.state[weights]["rms"] / (1 - 0.999)
    torch.testing.assert_close(clipped.sqrt(), torch.tensor([0.9, 1.2]), rtol=1e-4, atol=0)
    weights.grad = torch.tensor([0.0, 0.3])  # below 0.3 * |(2.9, 3.9)|: not cut
    optimizer.step()
    # second moments (0.999 v + 0.001 g²) / (1 - 0.999²), then momentum (0.9 m + 0.1 g / √v) / (1 - 0.9²), m being 0.1
    second = (0.999 * 0.001 * 1.2**2 + 0.001 * 0.3**2) / (1 - 0.999**2)
    expected = [2.9 - 0.1 * 0.09 / 0.19, 3.9 - 0.1 * (0.09 + 0.1 * 0.3 / second**0.5) / 0.19]
    torch.testing.assert_close(weights.detach(), torch.tensor(expected))


@pytest.mark.learns
@pytest.mark.parametrize("pixels", [True, pytest.param(False, marks=pytest.mark.slow)])  # 3 s
def test_overfits_one_batch(pixels):
    model, batch = small(pixels), segments(2, 5)
    first = model.update(batch)
    for _ in range(75):
        last = model.update(batch)
    assert last["reconstruction_loss"] < 0.5 * first["reconstruction_loss"]
    assert last["reward_loss"] < 0.7 * first["reward_loss"]
    assert last["dynamics_loss"] < 12


@pytest.mark.slow  # 9 s; it overfits one batch in each run of the suite
def test_learns_dynamics_and_rewards_open_loop():
    """A point that actions push about, and whose reward is the first action: imagined eight steps ahead."""
    model = small()

    def pushed(batch: int, time: int) -> TensorDict:
        drawn = segments(batch, time)
        drawn["state"][:, 1:, :2] = 0.3 * drawn["action"][:, :-1]
        drawn["state"][..., 2], drawn["next", "reward"] = 0.0, drawn["action"][..., :1]
        return drawn

    for _ in range(250):
        model.update(pushed(16, 8))
    test = pushed(64, 13)
    imagined = model.predict(test[:, :5], test["action"][:, 4:12])
    reward_error = (imagined["reward"] - test["next", "reward"][:, 4:12]).square().mean()
    state_error = (imagined["state"] - test["state"][:, 5:])[..., :2].square().mean()
    assert reward_error < 0.5 * test["next", "reward"].var()
    assert state_error < 0.5 * test["state"][:, 1:, :2].var()


def test_the_losses_are_weighted_by_hand():
    model = small()
    learned = model.learn(_numbered(), _nobody(model, 2))
    loss = {name.removesuffix("_loss"): value for name, value in learned.metrics.items()}
    assert loss["representation"] >= 1, "free nats"
    expected = loss["reconstruction"] + loss["reward"] + loss["continue"] + loss["dynamics"]
    torch.testing.assert_close(learned.loss.detach(), expected + 0.1 * loss["representation"])


def test_a_sequence_that_goes_on_pairs_each_row_with_what_led_to_it():
    """The row before an episode's first may terminate the one before it: nothing terminates on arrival there."""
    found = small()._going_on(_numbered())
    assert found.observed["state"][..., 0].tolist() == [[1, 2, 3], [11, 12, 13]]
    assert found.action[..., 0].tolist() == [[100, 101, 102], [110, 111, 112]]
    assert found.reward.tolist() == [[200, 201, 202], [210, 211, 212]]
    assert found.is_init.tolist() == [[False, True, False], [False, False, False]]
    assert found.terminated.tolist() == [[False, False, False], [False, True, False]]


def _numbered() -> TensorDict:
    """[2, 1 + 3]: state n, action 100 + n, reward 200 + n; 1 and 11 terminate, and an episode begins at 2."""
    number = torch.tensor([[0.0, 1, 2, 3], [10, 11, 12, 13]])[..., None]
    after = TensorDict(reward=200 + number, terminated=number % 10 == 1, batch_size=number.shape[:2])
    steps = {"state": number.expand(2, 4, 3), "action": (100 + number).expand(2, 4, 2), "is_init": number == 2}
    return TensorDict({**steps, "next": after}, batch_size=number.shape[:2])


@KEYS
def test_a_sequence_goes_on_from_a_packed_state_as_from_its_steps(pixels):
    model, batch = small(pixels), segments(3, 7)
    batch["is_init"] = torch.zeros(3, 7, 1, dtype=torch.bool)
    generator = torch.random.get_rng_state()
    whole = model.learn(_with_a_row_before(batch), _nobody(model, 3)).state
    before = model.pack(Latent(whole.deter[:, 1], whole.stoch[:, 1]))
    assert before["stoch"].dtype == torch.uint8 and before.batch_size == (3,)
    torch.random.set_rng_state(generator)
    after = model.learn(batch[:, 1:], before).state
    torch.testing.assert_close(after.deter[:, 0], whole.deter[:, 2])
    restored = model.unpack(before)
    assert torch.equal(restored.deter, whole.deter[:, 1]) and torch.equal(restored.stoch, whole.stoch[:, 1])


def _nobody(model: RSSM, batch: int) -> TensorDict:
    return model.unknown.expand(batch).clone()


def _with_a_row_before(batch: TensorDict) -> TensorDict:
    """[B, 1 + T]: as the replay hands an episode's beginning over, with a copy of its first row in front."""
    longer = torch.cat([batch[:, :1], batch], 1)
    longer["is_init"][:, 1] = True
    return longer


def test_nothing_before_an_episode_counts():
    model, batch = small(), segments(3, 5)
    batch["is_init"] = torch.zeros(3, 5, 1, dtype=torch.bool)
    batch = _with_a_row_before(batch)
    torch.manual_seed(1)
    one = model.learn(batch, _nobody(model, 3))
    other_batch, other = batch.clone(), _nobody(model, 3)
    other_batch["action"][:, 0], other_batch["next", "reward"][:, 0] = 7.0, 99.0
    other["deter"] += 3
    torch.manual_seed(1)
    again = model.learn(other_batch, other)
    assert again.loss == one.loss and torch.equal(again.state.deter, one.state.deter)


def test_acting_follows_what_learning_saw():
    """`follow` row by row is the state that `learn` has for a segment, as far as it is no matter of chance."""
    model, batch = small(), segments(2, 3)
    batch["is_init"] = torch.zeros(2, 3, 1, dtype=torch.bool)
    batch = _with_a_row_before(batch)
    learned = model.learn(batch, _nobody(model, 2)).state
    state = model.follow(_nobody(model, 2), torch.ones(2, 2), batch[:, 1], batch["is_init"][:, 1])
    torch.testing.assert_close(state.deter, learned.deter[:, 0])
    packed = model.pack(Latent(learned.deter[:, 0], learned.stoch[:, 0]))
    state = model.follow(packed, batch["action"][:, 1], batch[:, 2], batch["is_init"][:, 2])
    torch.testing.assert_close(state.deter, learned.deter[:, 1])


@KEYS
@torch.no_grad()
def test_imagines_and_forks(pixels):
    model, batch = small(pixels), segments(2, 5)
    state = model.fork(model.start(batch), 3)
    assert torch.equal(state.deter[0], state.deter[2]) and not torch.equal(state.deter[0], state.deter[3])
    state, predicted = model.step(state, torch.rand(6, 2))
    seen = batch[model.observations[0]]
    assert predicted[model.observations[0]].shape == (6, *seen.shape[2:])
    assert predicted[model.observations[0]].dtype == seen.dtype
    assert predicted["reward"].shape == (6, 1)


def test_what_it_cannot_be_built_for():
    with pytest.raises(ValueError, match="dreamerv3 learns from pixels, which the environment does not give"):
        RSSM(Composite(state=Unbounded((3,))), ACTIONS, pixels=True)
    with pytest.raises(ValueError, match="units is 40"):
        RSSM(SPECS, ACTIONS, pixels=False, units=40)


def test_refuses_to_learn_from_nan():
    model, batch = small(), segments()
    batch["next", "reward"][0, 0] = torch.nan
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(FloatingPointError, match="reward_loss = nan"):
        model.update(batch)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@KEYS
def test_bfloat16_follows_float32(pixels):
    """On one step, because a class that is drawn otherwise in a near tie changes all that follows."""
    batch, found = segments(batch=32, time=1), {}
    for precision in ("float32", "bfloat16"):
        model = small(pixels, precision=precision)
        model.reward_head.get_parameter("model.3.weight").data.normal_(
            std=0.1
        )  # zero at first, so that no gradient would pass it
        torch.manual_seed(1)
        learned = model._learn(model._from_scratch(batch), model.recurrence.initial(len(batch)))
        learned.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        imagined = model.imagine(Latent(*(part[:, 0].detach() for part in learned.state)), batch["action"][:, 0])
        assert {part.dtype for part in (*learned.state, *imagined, learned.loss, gradients)} == {torch.float32}
        numbers = model.reward(model.features(imagined)), model.continue_probability(model.features(imagined))
        assert {part.dtype for part in numbers} == {torch.float32}
        found[precision] = torch.stack(list(learned.metrics.values())), gradients
    (exact, gradients), (rounded, others) = found.values()
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.01)
    assert torch.cosine_similarity(gradients, others, 0) > 0.98


def test_the_weights_of_a_model_in_bfloat16_stay_float32_and_it_learns():
    model, batch = small(True, precision="bfloat16", learning_rate=3e-3), segments()  # above that the loss rises again
    losses = [float(model.update(batch)["reconstruction_loss"]) for _ in range(25)]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[-1] < 0.8 * losses[0]
