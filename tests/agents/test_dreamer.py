"""DreamerV3 as an agent: the latent state along an episode, one update, and a run that goes on to the bit."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import load_file
from tensordict import TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded

from mbrl import build
from mbrl.agents.dreamer import DreamerV3, LatentLearner
from mbrl.build import build_policy
from mbrl.collecting.collector import make_collector
from mbrl.collecting.evaluation import Evaluator
from mbrl.envs.toy import make_env
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from mbrl.targets import make
from mbrl.training import run
from policies.base import Policy
from tests.demonstrations import write_toy
from tests.parts_on_a_device import dreamer_and_replay
from tests.run_folders import latest_checkpoint, rows, weights

STEPS, SIDE = 10, 16
TINY = [
    "agent=dreamerv3", "env=toy", f"env.episode_length={STEPS}", f"env.resolution={SIDE}", "threads=1",
    "agent.batch_size=4", "agent.segment_length=4", "agent.horizon=3", "agent.learning_starts=20",
    "agent.policy.world_model.units=32",
]  # fmt: skip


def config(*overrides: str) -> Any:
    with initialize_config_module("configs", version_base="1.3"):
        return compose("train", [*TINY, *overrides])


def toy(seed: int = 0, worker: int = 0, first_episode: int = 0) -> Any:
    options = {"resolution": SIDE, "episode_length": STEPS, "first_episode": first_episode}
    return make_env(seed=seed, worker=worker, **options)


def agent_and_replay(tmp_path: Path, *overrides: str) -> tuple[DreamerV3, Replay]:
    settings = config(*overrides)
    env = toy()
    policy = build_policy(settings, env)
    replay = build.build_replay(settings, tmp_path / "replay", env, policy)
    agent = build.build_agent(settings, env, policy, replay)
    assert isinstance(agent, DreamerV3)
    return agent, replay


def collect(agent: DreamerV3, replay: Replay, steps: int = 40, **options: Any) -> None:
    collector = make_collector(
        toy, agent.policy, seed=0, random_steps=agent.random_steps, **({"frames_per_batch": 20} | options)
    )
    try:
        for _, batch in zip(range(steps // 20), collector, strict=False):
            replay.extend(batch)
    finally:
        collector.shutdown()


@pytest.mark.parametrize(("units", "millions"), [(256, 12), (384, 25), (512, 50), (1024, 200)])
def test_sizes_are_those_of_the_paper(units, millions):
    settings = config(f"agent.policy.world_model.units={units}").agent.policy
    specs = Composite(pixels=Bounded(0, 255, (3, 64, 64), dtype=torch.uint8))
    actions = Bounded(-1, 1, (4,))
    with torch.device("meta"):
        policy = make(settings, Policy, observation_spec=specs, action_spec=actions)
    learned = sum(p.numel() for p in policy.parameters() if p.requires_grad) / 1e6
    assert learned == pytest.approx(millions, rel=0.15)


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # 11 s
def test_the_latent_along_an_episode_is_what_learning_would_find(tmp_path, workers, fork_server):
    """Of each record, from the one before it: so actions, observations and resets are where they belong."""
    agent, replay = agent_and_replay(tmp_path)
    collect(agent, replay, workers=workers)
    model, records = agent.policy.world_model, replay.online.records
    assert len(replay.online.episodes) == 4
    for episode in replay.online.episodes:
        rows = torch.arange(episode.start, episode.start + STEPS)
        noted = replay.read_latents(rows, model.unknown)
        before = torch.cat([model.unknown[None], noted[:-1]])
        action = torch.cat([torch.zeros(1, 2), records["action"][rows[:-1]]])
        is_init = (torch.arange(STEPS) == 0)[:, None]
        with torch.no_grad():
            state = model.follow(before, action, records[rows], is_init)
        torch.testing.assert_close(noted["deter"], model.pack(state)["deter"])
        assert noted["deter"][1:].abs().sum(-1).min() > 0, "zeros before the first action, and never again"


def test_an_evaluation_in_between_leaves_the_episode_alone(tmp_path):
    agent, _ = agent_and_replay(tmp_path)
    evaluator = Evaluator(toy, episodes=2, max_steps=STEPS, seed=5)
    episodes = []
    for evaluates in (False, True):
        torch.manual_seed(0)
        replay = Replay(200)
        collector = make_collector(toy, agent.policy, seed=0, random_steps=0, frames_per_batch=5)
        torch.manual_seed(1)
        for _, batch in zip(range(4), collector, strict=False):
            replay.extend(batch)
            if evaluates:
                evaluator(agent.policy)
        collector.shutdown()
        episodes.append(replay.online.records[: 2 * (STEPS + 1)])
    assert (episodes[0] == episodes[1]).all()


def test_one_update_imagines_from_every_step_and_writes_the_latents_back(tmp_path, monkeypatch):
    agent, replay = agent_and_replay(tmp_path)
    collect(agent, replay)
    dreamt, drawn = [], []
    dream, sequences = agent.learner.dream, replay.sequences
    monkeypatch.setattr(agent.learner, "dream", lambda state: dreamt.append(dream(state)) or dreamt[-1])
    monkeypatch.setattr(replay, "sequences", lambda *a, **k: drawn.append(sequences(*a, **k)) or drawn[-1].clone())
    weights = {name: value.clone() for name, value in agent.policy.named_parameters()}
    latents = replay.online.latents.values.clone()
    agent.update(replay, 28, 24)  # the first learning rate is 0; last layers are zero at first, and pass nothing on
    assert agent.gradient_steps == 4
    assert dreamt[0].batch_size == (4 * 4, 3 + 1)
    assert not [name for name, value in agent.policy.named_parameters() if value.equal(weights[name])]
    changed = (latents["deter"] != replay.online.latents.values["deter"]).any(-1).nonzero().flatten()
    visited = {int(row) for batch in drawn for row in batch["index"][:, 1:].flatten()}
    assert set(changed.tolist()) <= visited and len(changed) > 0


def test_what_each_loss_reaches(tmp_path):
    """The actor-critic's losses in imagination train it alone; the critic's on replayed steps trains the model too."""
    agent, replay = agent_and_replay(tmp_path, "agent.pixels=false")
    collect(agent, replay)
    model, behaviour = agent.policy.world_model, agent.policy.behaviour
    torch.nn.init.normal_(behaviour.critic[-1].weight)  # which is zero at first, and passes nothing on
    batch = replay.sequences(4, 4, before=1)
    state = model.learn(batch, replay.read_latents(batch["index"][:, 0, 0], model.unknown)).state
    losses = behaviour.losses(agent.learner.dream(model.unpack(model.pack(state))))
    (losses.actor + losses.critic).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in behaviour.actor.parameters())
    reward = torch.zeros(4, 4)
    behaviour.replay_value_loss(model.features(state), reward, reward.bool(), reward).backward()
    assert model.recurrence.gru.gates.weight.grad.abs().sum() > 0
    assert model.encoder.layers.model[0].weight.grad.abs().sum() > 0


def test_the_policy_does_not_learn_by_itself(tmp_path):
    agent, _ = agent_and_replay(tmp_path)
    with pytest.raises(TypeError, match="learns through"):
        agent.policy.update(None)


def test_an_environment_without_what_it_learns_from():
    settings = config("agent.pixels=true", "env.pixels=false")

    class Specs:
        observation_spec = Composite(state=Unbounded((4,)))
        action_spec = Bounded(-1, 1, (2,))

    with pytest.raises(ValueError, match="dreamerv3 learns from pixels"):
        build_policy(settings, Specs())


@pytest.mark.process
def test_a_run_that_was_cut_goes_on_to_the_bit(tmp_path, monkeypatch):
    """Cut after updates that have written latents back since the last checkpoint."""
    schedule = ["total_env_steps=80", "checkpoint_every=20", "collect.frames_per_batch=10", "agent.pixels=false"]
    schedule += ["eval.every=40", "eval.episodes=1"]
    whole = run(config(*schedule, f"run_dir={tmp_path / 'whole'}"))
    update = LatentLearner.update

    updates = itertools.count(1)

    def cut(learner: LatentLearner, replay: Replay, weight: float) -> Any:
        if next(updates) == 18:
            raise KeyboardInterrupt
        return update(learner, replay, weight)

    monkeypatch.setattr(LatentLearner, "update", cut)
    cut_run = config(*schedule, f"run_dir={tmp_path / 'cut'}")
    with pytest.raises(KeyboardInterrupt):
        run(cut_run)
    monkeypatch.undo()
    run(cut_run)
    assert rows(tmp_path / "cut") == rows(whole)
    ours, theirs = weights(tmp_path / "cut"), weights(whole)
    kept = load_file(latest_checkpoint(tmp_path / "cut") / "replay.safetensors")
    assert set(kept) == {"episodes", "latents/deter", "latents/stoch"}
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)


def demonstrated(tmp_path: Path) -> list[str]:
    folder = write_toy(tmp_path / "demos", 4, episode_length=STEPS, resolution=SIDE)
    return [f"replay.demos={folder}", "replay.demo_share=0.5", "agent.pixels=false"]


@pytest.mark.slow  # 9 s
def test_it_imitates_demonstrations_in_its_latent_states(tmp_path):
    settings = [
        "agent.cloning.updates=200", "agent.batch_size=8", "agent.segment_length=8",
        "agent.policy.world_model.learning_rate=3e-3", "agent.policy.world_model.warmup=10",
    ]  # fmt: skip
    agent, replay = agent_and_replay(tmp_path, *demonstrated(tmp_path), *settings)
    critic = [parameter.clone() for parameter in agent.policy.behaviour.critic.parameters()]
    first = agent.clone(replay, 10)
    last = [agent.clone(replay, 10) for _ in range(19)][-1]
    assert last["policy/cloning_loss"] < first["policy/cloning_loss"] - 1.0
    assert last["policy/model_reward_loss"] < first["policy/model_reward_loss"]
    assert all(map(torch.equal, agent.policy.behaviour.critic.parameters(), critic)), "there is nothing to value yet"
    assert replay.demos.latents.values is not None and agent.gradient_steps == 200
    assert agent.clone(replay, 10) == {}, "it is done"


def test_after_each_update_it_imitates_less_and_less(tmp_path, monkeypatch):
    settings = ["agent.cloning.updates=1", "agent.cloning.weight=0.8", "agent.cloning.env_steps=100"]
    agent, replay = agent_and_replay(tmp_path, *demonstrated(tmp_path), *settings)
    weights: list[float] = []
    imitate = agent.learner.imitate
    monkeypatch.setattr(
        agent.learner, "imitate", lambda replay, weight: weights.append(weight) or imitate(replay, weight)
    )
    collect(agent, replay)
    for steps in (24, 28, 50):
        agent.update(replay, steps, 2 * steps)
    assert weights == pytest.approx([0.8 * (1 - 48 / 100)] * 2 + [0.8 * (1 - 56 / 100)] * 2)
    assert agent.counts["policy"] == 15


def test_demonstrations_without_what_it_sees_are_refused(tmp_path):
    folder = write_toy(tmp_path / "demos", 1, episode_length=STEPS, resolution=2 * SIDE)
    settings = config(f"replay.demos={folder}", "replay.demo_share=0.5")
    env = toy()
    policy = build_policy(settings, env)
    replay = build.build_replay(settings, tmp_path / "replay", env, policy)
    with pytest.raises(ValueError, match=r"their pixels is \[3, 32, 32\], the environment's \[3, 16, 16\]"):
        build.build_agent(settings, env, policy, replay)


def test_real_transitions_in_a_batch_are_refused(tmp_path):
    env, settings = toy(), config("agent.real_ratio=0.5")
    policy = build_policy(settings, env)
    replay = build.build_replay(settings, tmp_path / "replay", env, policy)
    with pytest.raises(UserError, match=r"agent\.real_ratio is 0\.5, but this policy learns in latent states"):
        build.build_agent(settings, env, policy, replay)


@pytest.mark.parametrize(
    ("key", "message"),
    [("reward", r"model_reward_loss = nan.*: lower agent\.policy\.world_model\.learning_rate"), ("action", "= nan")],
)
def test_losses_that_are_not_finite_change_no_weights(key: str, message: str) -> None:
    learner, replay = dreamer_and_replay("state", torch.device("cpu"))
    before = {name: value.clone() for name, value in learner.policy.named_parameters()}
    draw = replay.sequences

    def spoiled(*sizes: int, **options: Any) -> TensorDictBase:
        drawn = draw(*sizes, **options)
        (drawn["next"] if key == "reward" else drawn)[key][:] = torch.nan
        return drawn

    replay.sequences = spoiled
    with pytest.raises(FloatingPointError, match=message):
        learner.update(replay, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in learner.policy.named_parameters())
