"""DreamerV3's update on a world model and an actor-critic whose numbers are known."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.agents.dreamer import FEATURES, LatentLearner, LatentPolicy
from mbrl.agents.schedule import Schedule
from policies.actor_critic import Losses
from worldmodel.latent_base import SegmentLoss

ROWS = torch.tensor([[4, 5, 6, 7], [10, 11, 12, 13]])  # records of two segments and of the step before each


class Counting(nn.Module):
    """A latent state is the number of its record; an action is added to it. The loss is 100."""

    observations, feature_size, unknown = ("state",), 1, TensorDict(number=torch.zeros(1))

    def __init__(self, *specs: Any) -> None:
        super().__init__()
        self.scale, self.level = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.optimizers = {"world_model": torch.optim.SGD(self.parameters(), lr=0.0)}

    def learn(self, batch: TensorDict, before: TensorDict) -> SegmentLoss:
        self.before = before["number"]
        return SegmentLoss(100 * self.level, {"loss": 100 * self.level.detach()}, batch["state"][:, 1:])

    def features(self, state: Tensor) -> Tensor:
        return self.scale * state

    def imagine(self, state: Tensor, action: Tensor) -> Tensor:
        return state + action

    def reward(self, features: Tensor) -> Tensor:
        return 10 * features

    def continue_probability(self, features: Tensor) -> Tensor:
        return 1 - features / 100

    def pack(self, state: Tensor) -> TensorDict:
        return TensorDict(number=state.flatten(0, -2), batch_size=[state[..., 0].numel()])

    def unpack(self, packed: TensorDict) -> Tensor:
        return packed["number"]


class Actions:
    """The action in a state is its feature plus 1."""

    def __init__(self, features: Tensor, weight: Tensor) -> None:
        self.features, self.weight = features, weight

    def sample(self) -> Tensor:
        return self.features + 1

    def log_prob(self, action: Tensor) -> Tensor:
        """1000 less the action's distance from the feature."""
        return self.weight * (1000 - (action - self.features).abs().squeeze(-1))


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def distribution(self, features: Tensor) -> Actions:
        return Actions(features, self.weight)


class Behaviour(nn.Module):
    """The losses are 10 of the actor, 1 of the critic, and the sum of the features on replayed steps."""

    def __init__(self, *specs: Any, **sizes: Any) -> None:
        super().__init__()
        self.actor, self.critic = Actor(), nn.Parameter(torch.ones(()))
        parts = {"actor": self.actor.weight, "critic": self.critic}
        self.optimizers = {name: torch.optim.SGD([part], lr=0.0) for name, part in parts.items()}

    def losses(self, rollouts: TensorDict) -> Losses:
        """A return is the feature of its state."""
        return Losses(10 * self.actor.weight, self.critic * 1, rollouts[FEATURES][:, :-1, 0], {})

    def replay_value_loss(self, *given: Tensor) -> Tensor:
        self.replayed = given
        return self.critic * given[0].sum()

    def update_slow_critic(self) -> None: ...


class Records:
    """A replay of numbered records: action 100 + n, reward n / 100; number 6 terminates an episode."""

    def __init__(self) -> None:
        self.latents = torch.full((20, 1), -1.0)

    def sequences(self, *sizes: int, before: int) -> TensorDict:
        assert (*sizes, before) == (2, 3, 1)
        number = ROWS[..., None]
        after = TensorDict(reward=number / 100, terminated=number == 6, batch_size=ROWS.shape)
        steps = {"index": number, "state": number.float(), "action": 100.0 + number, "next": after}
        return TensorDict(steps, batch_size=ROWS.shape)

    demo_sequences = sequences

    def read_latents(self, index: Tensor, unknown: TensorDict) -> TensorDict:
        return TensorDict(number=self.latents[index], batch_size=index.shape)

    def write_latents(self, index: Tensor, latents: TensorDict) -> None:
        self.latents[index] = latents["number"]


def make(replay_value_weight: float = 0.3) -> LatentLearner:
    specs = Composite(state=Unbounded((1,))), Bounded(-1, 1, (1,))
    policy = LatentPolicy(*specs, world_model=Counting, behaviour=Behaviour)
    schedule = Schedule(batch_size=2, segment_length=3, updates_per_step=1, learning_starts=0, real_ratio=0)
    return LatentLearner(policy, schedule, horizon=3, replay_value_weight=replay_value_weight)


def test_a_dream_by_hand() -> None:
    dream = make().dream(torch.tensor([[0.0], [1.0]]))
    assert dream.batch_size == (2, 4)
    assert dream[FEATURES].tolist() == [[[0], [1], [3], [7]], [[1], [3], [7], [15]]]
    assert dream["action"].tolist() == [[[1], [2], [4], [0]], [[2], [4], [8], [0]]]
    assert dream["next", "reward"].tolist() == [[[10], [30], [70], [0]], [[30], [70], [150], [0]]]
    torch.testing.assert_close(
        dream["continue"].squeeze(-1), torch.tensor([[1.0, 0.99, 0.97, 0.93], [0.99, 0.97, 0.93, 0.85]])
    )


@pytest.mark.parametrize(("weight", "loss"), [(0.0, 100 + 10 + 1), (0.3, 100 + 10 + 1 + 0.3 * 54)])
def test_the_losses_of_an_update_by_hand(weight: float, loss: float) -> None:
    """The features of records 5 to 7 and 11 to 13 sum to 54."""
    learner, replay = make(weight), Records()
    _, batch = learner._read(replay, replay.sequences(2, 3, before=1))
    found = learner._differentiate(batch)
    assert float(found.metrics.named()["loss"]) == pytest.approx(loss)
    features, reward, terminated, start = learner.policy.behaviour.replayed
    assert features.squeeze(-1).tolist() == start.tolist() == ROWS[:, 1:].tolist()
    torch.testing.assert_close(reward, ROWS[:, 1:] / 100)
    assert terminated.tolist() == [[False, True, False], [False] * 3]
    level, scale = (found.gradients[n] for n in (1, 0))
    assert level == 100 and float(scale) == pytest.approx(weight * 54), "the critic's loss trains the model too"


def test_an_update_reads_the_latents_before_its_segments_and_writes_theirs() -> None:
    learner, replay = make(), Records()
    replay.latents[ROWS[:, 0]] = torch.tensor([[40.0], [100.0]])
    learner.update(replay, 0.0)
    assert learner.policy.world_model.before.tolist() == [[40], [100]]
    assert replay.latents[ROWS].squeeze(-1).tolist() == [[40, 5, 6, 7], [100, 11, 12, 13]]
    assert int((replay.latents == -1).sum()) == 20 - 8


def test_imitation_pairs_each_latent_state_with_the_action_taken_there() -> None:
    """An action's number is 100 above its state's. The actor's loss trains the actor alone."""
    learner, replay = make(), Records()
    metrics = learner.imitate(replay, 0.5)
    assert float(metrics["cloning_loss"]) == -900
    model, behaviour = learner.policy.world_model, learner.policy.behaviour
    assert model.level.grad == 100 and model.scale.grad is None
    assert behaviour.actor.weight.grad == -450 and behaviour.critic.grad is None
    assert replay.latents[ROWS[:, 1:]].squeeze(-1).tolist() == ROWS[:, 1:].tolist()
