"""The probabilistic ensemble on systems whose answers are known."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from worldmodel.ensemble.model import ProbabilisticEnsemble
from worldmodel.ensemble.transitions import held_out

SPEC, ACTION = Composite(state=Unbounded((4,))), Bounded(-1, 1, (2,))
NOISE = 0.02


def make(**settings: Any) -> ProbabilisticEnsemble:
    torch.manual_seed(0)
    small = {"members": 3, "elites": 2, "width": 32, "layers": 2, "batch_size": 128}
    optimizer = partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-5)
    return ProbabilisticEnsemble(SPEC, ACTION, optimizer=optimizer, **{**small, **settings})


def system(count: int, noise: float = NOISE, seed: int = 1) -> TensorDict:
    """x' = x + 0.1 a + 0.05 y (+ noise) for a place x [2]; y is x one step before; the reward is 3 a_0 - x_1."""
    generator = torch.Generator().manual_seed(seed)
    place, before = (torch.rand(count, 2, generator=generator) for _ in range(2))
    action = torch.rand(count, 2, generator=generator) * 2 - 1
    after = place + 0.1 * action + 0.05 * before + noise * torch.randn(count, 2, generator=generator)
    reward = 3 * action[:, :1] - place[:, 1:]
    following = TensorDict(state=torch.cat([after, place], 1), reward=reward, batch_size=[count])
    state = torch.cat([place, before], 1)
    return TensorDict(state=state, action=action, next=following, index=torch.arange(count), batch_size=[count])


def predicted(model: ProbabilisticEnsemble, data: TensorDict) -> TensorDict:
    return model.step(model.start(data[:, None]), data["action"])[1]


@pytest.fixture(scope="module")
def fitted() -> ProbabilisticEnsemble:
    model = make(sampled=True)
    model.enable_all_uncertainties()
    model.fit(system(3000), 600)
    return model


def test_learns_a_linear_system_and_its_noise(fitted: ProbabilisticEnsemble) -> None:
    fresh = system(2000, noise=0.0, seed=2)
    made = predicted(fitted, fresh)
    error = (made["state"] - fresh["next", "state"])[:, :2]
    assert abs(float(error.mean())) < 0.005
    assert float(error.std()) == pytest.approx(NOISE, rel=0.2), "sampled with the noise that the data have"
    assert (made["reward"] - fresh["next", "reward"]).abs().mean() < 0.1  # of a deviation of 1.8


def test_copies_are_exact(fitted: ProbabilisticEnsemble) -> None:
    fresh = system(500, seed=3)
    assert fitted.source.tolist() == [-1, -1, 0, 1]
    assert torch.equal(predicted(fitted, fresh)["state"][:, 2:], fresh["state"][:, :2])


def test_members_disagree_where_there_were_no_data(fitted: ProbabilisticEnsemble) -> None:
    near = system(500, seed=4)
    far = near.clone()
    far["state"] += 5.0
    for measure in fitted.uncertainty_keys:
        assert predicted(fitted, far)[measure].mean() > 5 * predicted(fitted, near)[measure].mean()


@pytest.mark.parametrize("residual", [True, False])
def test_the_change_and_the_next_state_are_learned_alike(residual: bool) -> None:
    model = make(residual=residual)
    model.fit(system(3000, noise=0.0), 600)
    fresh = system(1000, noise=0.0, seed=2)
    error = (predicted(model, fresh)["state"] - fresh["next", "state"])[:, :2]
    assert error.square().mean().sqrt() < 0.015  # the change itself is 0.08


def test_what_is_held_out_changes_nothing_that_is_learned() -> None:
    """Only when a fit ends and which weights it keeps hang on it: with a single look, nothing does."""
    data = system(600)
    held = held_out(data["index"], 0.1)
    other = data.clone()
    other["next", "reward"][held] += 1e-3
    other["action"][held] *= 0.99
    assert 30 < int(held.sum()) < 90
    weights = []
    for given in (data, other):
        model = make()
        torch.manual_seed(5)
        model.fit(given, 25)
        weights.append(model.members.weights[0].detach().clone())
    assert torch.equal(*weights) and not torch.equal(weights[0], make().members.weights[0])


def test_a_transition_belongs_to_the_same_members_for_ever() -> None:
    model, again = make(), make()
    few, many = model._shares(torch.arange(100)), again._shares(torch.arange(300))
    for less, more in zip(few, many, strict=True):
        assert torch.equal(less, more[more < 100])
    assert not torch.equal(few[0], few[1])


def test_a_share_of_each_batch_is_new() -> None:
    share = torch.arange(1000)
    for wanted in (0.0, 0.5):
        model = make(recent_share=wanted, batch_size=4000)
        drawn = model._draw(share)
        assert drawn.shape == (4000,)
        assert float((drawn >= 900).float().mean()) == pytest.approx(wanted + 0.1 * (1 - wanted), abs=0.02)
    assert set(make(batch_size=50)._draw(torch.tensor([7])).tolist()) == {7}


@pytest.mark.parametrize("output", [0, 4], ids=["state", "reward"])
def test_elites_are_the_best_on_held_out_data(output: int) -> None:
    """What is held out is moved by three deviations of an output: the member whose output moves as far is the best."""
    model, data = make(elites=1), system(600)
    model.fit(data, 50)
    change = torch.cat([data["next", "state"] - data["state"], data["next", "reward"]], 1)[:, output]
    moved = data["next", "state"][:, 0] if output == 0 else data["next", "reward"][:, 0]
    moved[held_out(data["index"], 0.1)] += 3 * change.std()
    for best in (0, 1, 2):
        model.members.biases[-1].data[best, ..., output] += 3
        model.fit(data, 0)
        assert model.elites.tolist() == [best]
        model.members.biases[-1].data[best, ..., output] -= 3


def test_the_best_weights_are_kept() -> None:
    model, data = make(elites=1, patience=2), system(600)
    model.fit(data, 100)
    before = predicted(model, data)
    for group in model.optimizers["ensemble"].param_groups:
        group["lr"] = 1.0  # every step makes it worse
    metrics = model.fit(data, 1000)
    assert metrics["updates"] == 2 * model.check_every, "it ends early"
    torch.testing.assert_close(predicted(model, data), before)


def test_new_transitions_are_judged_by_as_they_are_drawn() -> None:
    counts = make(recent_share=0.5)._counts(40, 20)  # of 40 held out, the newest 20 judge; 4 of them are new
    torch.testing.assert_close(counts[:16], torch.full((16,), 0.025))
    torch.testing.assert_close(counts[16:], torch.full((4,), 0.15))


def test_goes_on_to_the_bit() -> None:
    one, data = make(), system(500)
    one.fit(data, 30)
    two = make()
    two.load_state_dict(one.state_dict())
    two.optimizers["ensemble"].load_state_dict(deepcopy(one.optimizers["ensemble"].state_dict()))
    for model in (one, two):
        torch.manual_seed(9)
        model.fit(system(700), 30)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_estimates_come_when_they_are_asked_for() -> None:
    model, data = make(), system(300)
    model.fit(data, 1)
    torch.manual_seed(3)
    without = predicted(model, data)
    model.enable_all_uncertainties()
    torch.manual_seed(3)
    measured = predicted(model, data)
    assert set(measured.keys()) - set(without.keys()) == set(model.uncertainty_keys) == {"disagreement", "reward_std"}
    torch.testing.assert_close(measured.exclude(*model.uncertainty_keys), without)


@pytest.mark.parametrize("uncertainty", [False, True])
def test_every_elite_imagines_its_part(uncertainty: bool) -> None:
    model = make(elites=3)
    if uncertainty:
        model.enable_all_uncertainties()
    model.fit(system(300), 1)
    for member in range(3):
        model.members.biases[-1].data[member] = 1000.0 * (member + 1)

    def who(count: int) -> list[int]:
        reward = predicted(model, system(count))["reward"]
        return torch.bincount(model.of_rewards(reward).div(1000).round().flatten().long(), minlength=4).tolist()

    assert who(9) == [0, 3, 3, 3]
    assert sorted(who(10)) == [0, 2, 4, 4]
    assert torch.tensor([who(1) for _ in range(30)]).sum(0)[1:].min() > 2, "of a single row each has its turn"


def test_what_moves_for_the_first_time_is_not_extrapolated_to() -> None:
    """A resting object is whitened by its jitter: its first move is thousands of deviations wide."""
    data = system(2000)
    for moment in (data, data["next"]):
        moment["state"][:, 3] = 0.4
    model = make()
    model.fit(data, 300)
    moved = system(500, seed=6)
    moved["state"][:, 3] = 0.4 + 0.2 * torch.rand(500)
    made = predicted(model, moved)
    assert made["reward"].abs().max() < 8.0, "rewards of the data lie within 4"
    assert (made["state"] - moved["state"])[:, :2].abs().max() < 1.0


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"recent_share is 1\.5"):
        make(recent_share=1.5)
    with pytest.raises(ValueError, match=r"elites is 8: it must be 1 to members \(3\)"):
        make(elites=8)
    with pytest.raises(ValueError, match="holdout is 1"):
        make(holdout=1.0)
    with pytest.raises(ValueError, match="too few to hold out"):
        make().fit(system(1), 1)
    with pytest.raises(ValueError, match="predicts `state`, which this environment does not show"):
        ProbabilisticEnsemble(Composite(), ACTION, optimizer=torch.optim.AdamW)
    with pytest.raises(TypeError, match="learns by fit"):
        make().update(system(2))
