"""Several tasks from pixels: who is told which task it is, and what comes of it where the pictures are all alike."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.agents.imagination import Imagination
from mbrl.agents.planning import PlanningPolicy
from mbrl.agents.task_conditioning import TaskConditioned
from mbrl.replay.replay import Replay
from policies.actor_critic import ActorCritic
from policies.base import Policy
from policies.bc import BehaviourCloning
from policies.drqv2 import DrQV2
from policies.planner import CEM
from policies.random import RandomPolicy
from tests.fakes import SIZE, CountingWorldModel, episode
from worldmodel.rssm.model import RSSM

ACTION = Bounded(-1.0, 1.0, (2,))
TASKS = torch.eye(2)
SPECS = Composite(
    pixels=Bounded(0, 255, (3, 16, 16), dtype=torch.uint8),
    frames=Bounded(0, 255, (9, 16, 16), dtype=torch.uint8),
    task=Unbounded((2,)),
)
ENCODER: dict[str, Any] = {"encoder_channels": (4, 4), "encoder_strides": (2, 2), "kernel_size": 3, "hidden_size": 32}


class Signed(CountingWorldModel):
    """Its reward is the action's first entry in task 0 and minus that in task 1; keeps the contexts it starts from."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.action_dim, self.resolution = width, SIZE
        self.contexts: list[TensorDictBase] = []

    def start(self, context: TensorDictBase) -> Tensor:
        self.contexts.append(context)
        return super().start(context)

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        assert action.shape[1] == 4
        state, prediction = super().step(state, action)
        return state, prediction.set("reward", action[:, :1] * (action[:, 2:3] - action[:, 3:4]))


def conditioned() -> TaskConditioned:
    return TaskConditioned(Signed, actions=2, tasks=2)


def context() -> TensorDict:
    """Two histories of two steps, of task 0 and of task 1."""
    pixels = torch.zeros(2, 2, 3, SIZE, SIZE, dtype=torch.uint8)
    task = TASKS[:, None].expand(2, 2, 2)
    return TensorDict(pixels=pixels, action=torch.full((2, 2, 2), 0.5), task=task, batch_size=[2, 2])


def test_rewards_of_observed_frames_are_those_of_the_task() -> None:
    model, steps = conditioned(), context()
    seen: list[tuple[str, list[float]]] = []
    model.model.update_rewards = lambda batch: seen.append(("learned", batch["action"][0, 0].tolist())) or {}
    model.model.observe = lambda state, action, observed: seen.append(("read", action[0].tolist())) or (state, observed)
    model.update_rewards(steps)
    state, _ = model.observe(model.start(steps), torch.full((2, 2), 0.25), steps[:, 0])
    assert seen == [("learned", [0.5, 0.5, 1.0, 0.0]), ("read", [0.25, 0.25, 1.0, 0.0])]
    assert torch.equal(state.task, TASKS)


def test_a_world_model_receives_the_task_with_each_action() -> None:
    model, steps = conditioned(), context()
    model.update(steps)
    inner = model.model
    assert isinstance(inner, Signed)
    assert inner.batches[0]["action"][:, 0].tolist() == [[0.5, 0.5, 1.0, 0.0], [0.5, 0.5, 0.0, 1.0]]
    assert steps["action"].shape == (2, 2, 2)  # the caller's are as they were
    assert (model.action_dim, model.observations, model.max_horizon) == (2, ("pixels", "task"), 10)

    state, prediction = model.step(model.fork(model.start(steps), 2), torch.full((4, 2), 0.25))
    assert prediction["reward"].flatten().tolist() == [0.25, 0.25, -0.25, -0.25]
    assert torch.equal(prediction["task"], TASKS.repeat_interleave(2, 0)) and torch.equal(
        state.task, prediction["task"]
    )
    actions = torch.full((2, 3, 2), 0.25)
    reward = model.outcome(model.start(steps), actions).reward
    assert reward is not None and reward.tolist() == [[0.25] * 3, [-0.25] * 3]
    rollout = model.predict(steps, actions, samples=2)
    assert rollout["reward"][:, 0, 0].tolist() == [0.25, 0.25, -0.25, -0.25]
    assert torch.equal(rollout["task"][:, 2], TASKS.repeat_interleave(2, 0))


def test_a_world_model_that_only_watches_cannot_be_conditioned() -> None:
    with pytest.raises(ValueError, match="without actions cannot be conditioned on the task"):
        TaskConditioned(lambda _: Signed(0), actions=2, tasks=2)


def test_imagination_stays_in_its_task() -> None:
    replay = Replay(100)
    for number in range(4):
        records = episode(number, steps=6)
        records["task"] = TASKS[number % 2].expand(len(records), 2).clone()
        replay.online.extend(records[None])
    policy = DrQV2(
        Composite(frames=Bounded(0, 255, (9, SIZE, SIZE), dtype=torch.uint8), task=Unbounded((2,))),
        ACTION, feature_size=4, shift_pad=1, **ENCODER,
    )  # fmt: skip
    imagination = Imagination(
        conditioned(), policy, replay, action_spec=ACTION, resolution=SIZE, rollouts=8, horizon=3, retain=1, n_step=1
    )
    imagination.run()
    batch = imagination.transitions(64)
    assert torch.equal(batch["task"], batch["next", "task"])
    number = batch["frames"][:, 0, 0, 0] // 10  # the episode that a rollout branched from
    assert number.unique().numel() > 1 and torch.equal(batch["task"], TASKS[number.long() % 2])
    sign = batch["task"][:, 0] - batch["task"][:, 1]
    torch.testing.assert_close(batch["next", "reward"].flatten(), sign * batch["action"][:, 0])
    real = replay.transitions(16)
    assert set(batch.keys(True, True)) <= set(real.keys(True, True))
    policy.update(torch.cat([batch, real.select(*batch.keys(True, True))]))


def test_a_planner_plans_in_its_task() -> None:
    """The same picture, and the opposite action: what is worth most is all the way up, or down."""
    torch.manual_seed(0)
    specs = Composite(frames=Bounded(0, 255, (9, SIZE, SIZE), dtype=torch.uint8), task=Unbounded((2,)))
    search = CEM(horizon=2, candidates=64, elites=6, iterations=4, std=1.0)
    prior = RandomPolicy(specs, ACTION)
    policy = PlanningPolicy(conditioned(), search, prior, observation_spec=specs, action_spec=ACTION, gamma=1.0)
    memory = {key: spec.zero().expand(2, *spec.shape) for key, spec in policy.actor.memory.items()}
    frames = torch.zeros(2, 9, SIZE, SIZE, dtype=torch.uint8)
    plan = policy.actor.plan(TensorDict({"frames": frames, "task": TASKS, **memory}, batch_size=[2]))
    assert plan.mean[0, 0, 0] > 0.8 and plan.mean[1, 0, 0] < -0.8


@pytest.mark.parametrize(
    "make",
    [
        lambda: DrQV2(SPECS, ACTION, feature_size=8, shift_pad=1, learning_rate=1e-2, **ENCODER),
        lambda: BehaviourCloning(SPECS, ACTION, feature_size=8, shift_pad=1, learning_rate=1e-2, **ENCODER),
        lambda: ActorCritic(SPECS, ACTION, learning_rate=1e-2, warmup=1, **ENCODER),
    ],
)
def test_a_policy_does_what_its_task_asks_for(make: Any) -> None:
    """All pictures are alike; what was demonstrated is up in one task and down in the other."""
    torch.manual_seed(0)
    policy: Policy = make()
    frames = torch.full((8, 9, 16, 16), 100, dtype=torch.uint8)
    task = TASKS.repeat(4, 1)
    action = (0.5 * (task[:, :1] - task[:, 1:])).expand(8, 2)
    following = TensorDict(
        frames=frames, task=task, reward=torch.zeros(8, 1), terminated=torch.zeros(8, 1, dtype=torch.bool),
        batch_size=[8],
    )  # fmt: skip
    batch = TensorDict(frames=frames, task=task, action=action, gamma=torch.ones(8, 1), next=following, batch_size=[8])
    for _ in range(150):
        policy.clone(batch)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        acted = policy.actor(batch.select("frames", "task"))["action"]
    torch.testing.assert_close(acted, action, atol=0.2, rtol=0)


@pytest.mark.slow  # 4 s
def test_a_latent_state_knows_its_task() -> None:
    """All pictures are alike; each step of task 0 earns 1, of task 1 nothing, in imagination too."""
    torch.manual_seed(0)
    model = RSSM(SPECS, ACTION, pixels=True, units=32, learning_rate=3e-3, warmup=10, free_nats=0.1)
    assert model.observations == ("pixels", "task") and model.tasks == 2
    shape = (8, 4)
    task = TASKS.repeat(4, 1)[:, None].expand(*shape, 2)
    batch = TensorDict(
        pixels=torch.full((*shape, 3, 16, 16), 100, dtype=torch.uint8),
        task=task,
        action=torch.zeros(*shape, 2),
        next={"reward": task[..., :1], "terminated": torch.zeros(*shape, 1, dtype=torch.bool)},
        batch_size=shape,
    )
    for _ in range(120):
        model.update(batch)
    with torch.no_grad():
        state = model.start(batch[:2])
        for _ in range(4):
            state, prediction = model.step(state, torch.zeros(2, 2))
    torch.testing.assert_close(prediction["task"], TASKS, atol=0.2, rtol=0)
    torch.testing.assert_close(prediction["reward"].flatten(), torch.tensor([1.0, 0.0]), atol=0.2, rtol=0)


def test_temperature_and_measures_are_those_of_the_inner_model() -> None:
    class Doubting(Signed):
        temperature = 1.0

        def set_temperature(self, value: float) -> None:
            self.temperature = value

        def enable_all_uncertainties(self) -> None:
            self.uncertainty_keys = ("doubt",)

    model = TaskConditioned(Doubting, actions=2, tasks=2)
    assert (model.temperature, model.uncertainty_keys) == (1.0, ())
    model.set_temperature(0.5)
    model.enable_all_uncertainties()
    assert (model.temperature, model.model.temperature, model.uncertainty_keys) == (0.5, 0.5, ("doubt",))
