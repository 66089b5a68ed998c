"""A world model is updated as often, and from as many episodes, as while an agent acts."""

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from mbrl.agents.model_learners import FitModelLearner, SegmentModelLearner
from mbrl.agents.schedule import Schedule
from mbrl.prediction.fresh import learn
from mbrl.replay.replay import Replay
from tests.fakes import CountingWorldModel, episode

SCHEDULE: dict[str, Any] = {
    "batch_size": 1, "updates_per_step": 1, "learning_starts": 10, "model_batch_size": 2, "segment_length": 3,
    "model_updates_first": 3, "model_updates_per_step": 0.2,
}  # fmt: skip


class Noting(CountingWorldModel):
    """Notes how many episodes there are to draw from at each update or fit."""

    def __init__(self, replay: Replay, fits: bool) -> None:
        super().__init__()
        self.replay, self.fits, self.found = replay, fits, list[int]()

    def update(self, batch: TensorDictBase) -> dict[str, torch.Tensor]:
        assert batch.shape == (2, 3)
        self.found.append(len(self.replay.online.episodes))
        return super().update(batch)

    def fit(self, transitions: TensorDictBase, max_updates: int) -> dict[str, torch.Tensor]:
        self.found.append(len(transitions))
        return {"updates": torch.tensor(float(max_updates))}


@pytest.mark.parametrize("fits", [False, True])
def test_updates_follow_the_schedule_of_the_agent(fits: bool) -> None:
    replay = Replay(100, frame_stack=1, n_step=1)
    model = Noting(replay, fits)
    rates = SCHEDULE | ({"model_fit_every": 10} if fits else {})
    learner = (FitModelLearner if fits else SegmentModelLearner)(model, Schedule(**rates))
    episodes = [episode(number, steps=10) for number in range(3)]
    with tqdm(disable=True) as bar:
        learn(learner, replay, episodes, 5, bar)
    # 10 steps with random actions; then three updates at once, and one every five steps
    assert model.found == ([10, 20, 30] if fits else [1, 1, 1, 1, 2, 2, 3])
    assert learner.updates == (3 + 2 + 2 if fits else 7)


def test_rewards_learn_alone_as_often_as_before_each_imagination() -> None:
    replay = Replay(100, frame_stack=1, n_step=1)
    model = Noting(replay, fits=False)
    model.learns_rewards = True
    schedule = Schedule(**SCHEDULE, real_ratio=0.0, reward_updates=2, imagine_every=10)
    episodes = [episode(number, steps=10) for number in range(3)]
    with tqdm(disable=True) as bar:
        learn(SegmentModelLearner(model, schedule), replay, episodes, 5, bar)
    assert len(model.reward_batches) == 3 * 2, "after 10, 20 and 30 steps"
