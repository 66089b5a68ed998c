"""How often a run does each of its parts, counted by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from mbrl.agents.cloning import Cloning
from mbrl.agents.schedule import Schedule
from mbrl.estimating.counts import Counts, Lengths
from worldmodel.ivideogpt.training import TrainingPlan

# 1000 env steps are 500 agent steps: 10 episodes of 50, in batches of 10
LENGTHS = Lengths(
    env_steps=1000, repeat=2, per_episode=50, per_batch=10, workers=1, eval_every=300, checkpoint_every=250
)
PLAN = TrainingPlan(tokenizer_updates=3, tokenizer_every=4)


def agent(schedule: Schedule, *, fits: bool | None = None, cloning: int = 0, planner: bool = False) -> Any:
    """What is counted of an agent; `fits` None: it has no world model."""
    model = SimpleNamespace(fits=fits, kinds_of_updates=lambda updates: PLAN.kinds_of_updates(0, updates))
    made = SimpleNamespace(
        schedule=schedule, cloning=Cloning(cloning), policy=object(), imagination=None,
        model_error=None, model_learner=None,
    )  # fmt: skip
    made.planner = object() if planner else None
    made.acting_policy = made.planner or made.policy
    if fits is not None:
        made.imagination, made.model_learner = object(), SimpleNamespace(world_model=model)
        made.model_error = SimpleNamespace(every=400)
    return made


def test_a_model_free_agent() -> None:
    counts = Counts.of(agent(Schedule(batch_size=8, updates_per_step=1.5, learning_starts=100)), LENGTHS)
    assert counts.agent_steps == 500
    assert counts.policy_updates == 600  # 1.5 for each of the 400 steps after the first 100
    assert (counts.model_updates, counts.imaginations, counts.assessments, counts.imitations) == ({}, 0, 0, 0)
    assert counts.evaluations == 4  # at 300, 600, 900 and at the end
    assert counts.checkpoints == 4  # at the ends of episodes of 100 env steps: 300, 500, 800 and 1000


def test_a_world_model_that_is_updated() -> None:
    schedule = Schedule(
        8,
        1.0,
        learning_starts=100,
        real_ratio=0.5,
        model_updates_first=6,
        model_updates_per_step=0.01,
        imagine_every=100,
    )
    counts = Counts.of(agent(schedule, fits=False), LENGTHS)
    # 6 and one in 100 of 400 steps: 3 of the tokenizer, then 7 of the transformer, of which the fourth is of both
    assert counts.model_updates == {0: 3, 3: 6, 6: 1}
    assert counts.imaginations == 5  # at 0, 100, 200, 300 and 400 of the 400 steps
    assert counts.assessments == 2  # at 400 and 800 env steps


def test_a_world_model_that_is_fitted() -> None:
    schedule = Schedule(
        8,
        1.0,
        learning_starts=100,
        real_ratio=0.5,
        model_updates_first=50,
        model_updates_per_step=0.2,
        model_fit_every=80,
    )
    counts = Counts.of(agent(schedule, fits=True), LENGTHS)
    assert counts.fits == 6  # at 0, 80, ... 400
    assert counts.model_updates == {0: 50 + 5 * 16}


def test_imitation_is_evaluated_unless_a_planner_acts() -> None:
    schedule = Schedule(8, 1.0, learning_starts=0)
    imitating = Counts.of(agent(schedule, cloning=20), LENGTHS)
    assert (imitating.imitations, imitating.evaluations) == (20, 5)
    assert Counts.of(agent(schedule, cloning=20, planner=True), LENGTHS).evaluations == 4


def test_rewards_of_a_planner_learn_in_each_round() -> None:
    schedule = Schedule(8, 1.0, learning_starts=100, reward_updates=3)
    assert Counts.of(agent(schedule, planner=True), LENGTHS).reward_updates == 3 * (400 // LENGTHS.per_batch + 1)


def test_updates_of_the_critics_alone_are_updates_of_the_policy() -> None:
    cloned = agent(Schedule(8, 1.0, learning_starts=100))
    cloned.cloning = Cloning(20, critic_updates=50)
    assert Counts.of(cloned, LENGTHS).policy_updates == 400 + 50


def test_updates_while_imitation_has_a_weight() -> None:
    cloned = agent(Schedule(8, 1.0, learning_starts=100))
    for weight, env_steps, expected in ((1.0, 600, 200), (1.0, 10_000, 400), (1.0, 100, 0), (0.0, 600, 0)):
        cloned.cloning = Cloning(20, weight=weight, env_steps=env_steps)
        assert Counts.of(cloned, LENGTHS).imitating == expected  # agent steps 100 to 300


def test_a_run_that_ends_before_learning_starts() -> None:
    counts = Counts.of(agent(Schedule(8, 1.0, learning_starts=501), fits=False), LENGTHS)
    assert (counts.policy_updates, counts.model_updates, counts.imaginations) == (0, {}, 0)


@pytest.mark.parametrize(("workers", "checkpoints"), [(1, 4), (2, 4)])
def test_the_last_batch_is_whole(workers: int, checkpoints: int) -> None:
    lengths = Lengths(
        env_steps=1001, repeat=2, per_episode=50, per_batch=10, workers=workers, eval_every=5000, checkpoint_every=300
    )
    assert (lengths.agent_steps, lengths.evaluations(), lengths.checkpoints()) == (510, 1, checkpoints)


def test_kinds_of_updates_of_a_plan() -> None:
    assert PLAN.kinds_of_updates(0, 0) == {}
    assert PLAN.kinds_of_updates(3, 8) == {3: 6, 6: 2}, "pretrained: the tokenizer alone is left out"
    assert TrainingPlan(tokenizer_updates=0, tokenizer_every=0).kinds_of_updates(0, 5) == {0: 5}
