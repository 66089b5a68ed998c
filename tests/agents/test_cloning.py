"""Demonstrations in a run: imitated first, then kept to less and less; and what cannot be learned from is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mbrl
from mbrl.agents.agent import END_OF_SCHEDULES, Agent
from mbrl.agents.cloning import Cloning
from mbrl.agents.imagination import Imagination
from mbrl.agents.learners import RolloutLearner
from mbrl.agents.schedule import Schedule
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from mbrl.results.read_curves import read_curves
from mbrl.training import build, run, train
from policies.value_base import ValuePolicy
from tests.agents.test_imagination import ACTION
from tests.demonstrations import play_expert, write_episodes, write_toy
from tests.fakes import SIZE, BrightnessPolicy, CountingWorldModel, episode
from tests.run_folders import build_replay, latest_checkpoint, rows, weights
from tests.test_training import TOY, compose_config

TOY_SETTINGS = {"episode_length": 20, "resolution": 32}
CLONED = [
    "agent=drqv2", "agent.cloning.updates=7", "agent.cloning.critic_updates=3", "replay.demo_share=0.5",
]  # fmt: skip
PLANS = ["agent=mpc_ivideogpt", *CLONED[1:2], "replay.demo_share=0.5", "agent.world_model.tokenizer.resolution=32"]


class Pupil(BrightnessPolicy, ValuePolicy):
    """Keeps what it is to imitate, and the env steps it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.demonstrated, self.weights, self.calibrated, self.env_steps = [], [], [], -1

    def cloned_action(self, observed):
        return observed["frames"][:, 0, 0, :1] / 255.0 * torch.ones(ACTION.shape)

    def clone(self, batch, weight=1.0):
        self.demonstrated.append(batch)
        self.weights.append(weight)
        return {"cloning_loss": torch.ones(())}

    def calibrate(self, batch):
        self.calibrated.append((batch, len(self.batches)))
        return {"critic_loss": torch.ones(())}

    def set_env_steps(self, n):
        self.env_steps = n


def agent_and_replay(**cloning) -> tuple[Agent, Replay]:
    replay = Replay(200, demo_share=0.25)
    replay.add_demos([episode(20)])  # frames from 200 on
    replay.online.extend(episode(0)[None])
    return Agent(
        Pupil(), schedule=Schedule(8, updates_per_step=1, learning_starts=10), cloning=Cloning(**cloning)
    ), replay


def test_the_weight_falls_to_nothing():
    cloning = Cloning(updates=1, weight=0.8, env_steps=100)
    assert [cloning.weight_at(n) for n in (0, 25, 50, 100, 1000)] == pytest.approx([0.8, 0.6, 0.4, 0.0, 0.0])
    assert Cloning(updates=0, weight=0.8, env_steps=100).weight_at(0) == 0.0


def test_demonstrations_alone_are_imitated_first():
    agent, replay = agent_and_replay(updates=5)
    assert agent.random_steps == 0, "the clone acts, not chance"
    agent.clone(replay, 3)
    again = Agent(Pupil(), schedule=Schedule(8, updates_per_step=1, learning_starts=10), cloning=Cloning(updates=5))
    again.load_state_dict(agent.state_dict())
    assert again.clone(replay, 100)["policy/cloning_loss"] == 1.0
    assert (len(agent.policy.demonstrated), len(again.policy.demonstrated)) == (3, 2)
    for batch in agent.policy.demonstrated + again.policy.demonstrated:
        assert batch.batch_size == (8,) and (batch["frames"] >= 200).all()
    assert again.gradient_steps == 5
    assert agent.policy.env_steps == END_OF_SCHEDULES, "exploration begins where its schedule ends"


def test_demonstrated_rows_are_kept_to_less_and_less():
    agent, replay = agent_and_replay(updates=1, weight=0.8, env_steps=40)
    for steps in (11, 15, 25):
        agent.update(replay, steps, 2 * steps)
    batches = agent.policy.batches
    assert len(batches) == 15
    for index, batch in enumerate(batches[:5]):
        weight = 0.8 * (1 - (22 if index == 0 else 30) / 40)
        from_demos = (batch["frames"][:, :1, 0, 0] >= 200).float()
        assert int(from_demos.sum()) == 2
        assert torch.allclose(batch["cloning"], weight * from_demos)
    assert all("cloning" not in batch.keys() for batch in batches[5:]), "after 40 env steps it is over"


def test_an_anchored_actor_imitates_the_clone_where_nothing_was_demonstrated():
    agent, replay = agent_and_replay(updates=1, weight=0.8, env_steps=40)
    agent.policy.keep_clone()
    for steps in (11, 25):
        agent.update(replay, steps, 2 * steps)
    batches = agent.policy.batches
    assert torch.allclose(batches[0]["cloning"], torch.full((8, 1), 0.8 * (1 - 22 / 40)))
    demonstrated = batches[0]["frames"][:, :1, 0, 0] >= 200
    wanted = torch.where(demonstrated, batches[0]["action"], agent.policy.cloned_action(batches[0]))
    assert int(demonstrated.sum()) == 2 and torch.equal(batches[0]["imitated"], wanted)
    assert {"cloning", "imitated"}.isdisjoint(batches[-1].keys()), "after 40 env steps it is over"


def test_imagined_batches_are_anchored_too_and_cannot_be_imitated_without():
    _, replay = agent_and_replay()
    schedule = Schedule(8, updates_per_step=1, learning_starts=0, real_ratio=0.0, imagine_every=8)

    def made(**cloning):
        policy, model = Pupil(), CountingWorldModel()
        if cloning.get("anchor"):
            policy.keep_clone()
        sizes = {"rollouts": 4, "horizon": 3, "retain": 1, "resolution": SIZE, "action_spec": ACTION}
        imagination = Imagination(model, policy, replay, **sizes)
        return Agent(policy, model, imagination, schedule=schedule, cloning=Cloning(updates=1, **cloning))

    agent = made(weight=0.8, env_steps=40, anchor=True)
    agent.update(replay, 1, 20)
    (batch,) = agent.policy.batches
    assert torch.allclose(batch["cloning"], torch.full((8, 1), 0.4))
    assert torch.equal(batch["imitated"], agent.policy.cloned_action(batch))
    with pytest.raises(UserError, match=r"real_ratio=0 has none: set agent\.cloning\.weight=0, .*anchor=true, or"):
        made(weight=0.8)
    made()


def test_a_learner_from_rollouts_imitates_in_steps_of_its_own():
    agent, replay = agent_and_replay(updates=2, weight=0.8, env_steps=40)
    agent.clone(replay, 2)
    imagination = Imagination(
        CountingWorldModel(), agent.policy, replay, action_spec=ACTION, resolution=SIZE, rollouts=4, horizon=5, retain=2
    )
    imagination.run()
    imitations, schedule = agent.learner.imitations, Schedule(8, updates_per_step=1, learning_starts=10, real_ratio=0)
    agent.learner = RolloutLearner(agent.policy, imagination, schedule)
    agent.learner.imitations = imitations
    for steps in (11, 15, 25):
        agent.update(replay, steps, 2 * steps)
    assert agent.policy.weights == pytest.approx([1.0, 1.0, 0.36, *[0.2] * 4])
    assert all((batch["frames"] >= 200).all() for batch in agent.policy.demonstrated)
    assert agent.gradient_steps == 15 + 7


def test_the_critics_are_calibrated_before_the_first_update():
    agent, replay = agent_and_replay(updates=1, critic_updates=4)
    agent.clone(replay, 1)
    assert agent.update(replay, 9, 18) == {} and not agent.policy.calibrated, "the clone still collects"
    agent.update(replay, 12, 24)
    again, _ = agent_and_replay(updates=1, critic_updates=4)
    again.load_state_dict(agent.state_dict())
    again.update(replay, 13, 26)
    assert [before for _, before in agent.policy.calibrated] == [0] * 4 and not again.policy.calibrated
    for batch, _ in agent.policy.calibrated:
        assert int((batch["frames"][:, 0, 0, 0] >= 200).sum()) == 2, "as in updates, demonstrations are among them"
    assert (agent.gradient_steps, again.gradient_steps) == (1 + 4 + 2, 1 + 4 + 3)


def test_without_cloning_batches_are_what_they_were():
    agent, replay = agent_and_replay(critic_updates=4, anchor=True)
    agent.cloning.prepare(agent.policy)
    agent.update(replay, 12, 24)
    assert agent.random_steps == 10 and agent.policy.env_steps == 24
    assert agent.policy.frozen is None and not agent.policy.calibrated and agent.gradient_steps == 2
    assert all({"cloning", "demonstrated"}.isdisjoint(batch.keys()) for batch in agent.policy.batches)


def compose(tmp_path: Path, *overrides: str, demos: str | None = None):
    folder = demos or write_toy(tmp_path / "demos", 3, **TOY_SETTINGS)
    return compose_config(tmp_path / "run", *TOY, f"replay.demos={folder}", *overrides)


@pytest.mark.process
@pytest.mark.parametrize("pixels", ["true", "false"])
def test_bc_runs_in_the_loop(tmp_path, pixels):
    settings = [override for override in TOY if not override.startswith("agent.")]
    config = compose_config(
        tmp_path / "run", *settings, "agent=bc", f"agent.pixels={pixels}", "agent.cloning.updates=150",
        "agent.batch_size=16", f"replay.demos={write_toy(tmp_path / 'demos', 3, **TOY_SETTINGS)}",
    )  # fmt: skip
    folder = run(config)
    steps = [line.split(",") for line in (folder / "eval.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in steps] == ["0", "60", "120"]
    assert len({row[1] for row in steps}) == 1, "no env step teaches it"
    cloned = [row for row in rows(folder) if "policy/cloning_loss" in row]
    assert [(row["env_steps"], row["gradient_steps"]) for row in cloned] == [(0, 100), (0, 150)]
    shutil.rmtree(tmp_path / "demos")
    assert mbrl.load(folder).replay.demos is None, "a run that was moved is read without its demonstrations"


@pytest.mark.slow  # 5 s each
@pytest.mark.parametrize("agent", ["drqv2", "sac"])
def test_a_broken_off_run_goes_on_to_the_bit(tmp_path, monkeypatch, agent):
    """Killed after its first checkpoint, a run that imitates first does not imitate again, and ends the same."""
    demos = write_toy(tmp_path / "demos", 2, **TOY_SETTINGS)
    overrides = [*TOY, f"agent={agent}", *CLONED[1:], "agent.cloning.anchor=true", f"replay.demos={demos}"]
    whole = run(compose_config(tmp_path / "whole", *overrides))
    update = Agent.update

    def broken(self, replay, agent_steps, *rest):
        if agent_steps == 90 and self.learner.imitations:
            raise KeyboardInterrupt
        return update(self, replay, agent_steps, *rest)

    config = compose_config(tmp_path / "broken", *overrides)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Agent, "update", broken)
        run(config)
    assert latest_checkpoint(tmp_path / "broken").exists()
    run(config)
    assert rows(tmp_path / "broken") == rows(whole)
    ours, theirs = weights(tmp_path / "broken"), weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)


def test_the_clone_collects_from_the_first_step(tmp_path):
    config = compose(tmp_path, *CLONED, "agent.cloning.updates=1", "agent.learning_starts=1000")
    parts = build(config)
    try:
        with torch.no_grad():  # a clone that always does the same
            parts.agent.policy.actor.head[-1].bias.fill_(100.0)
        parts.agent.learner.imitations = 1
        parts.agent.policy.end_cloning()
        parts.agent.set_env_steps(0)
        train(config, parts)
        actions = parts.replay.online.transitions(64)["action"]
    finally:
        parts.close()
    assert (actions > 0.5).all(), "neither random steps nor a beginner's noise"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["agent=bc", "replay.demos=null"], "there are no demonstrations .* give replay.demos=FOLDER"),
        (["agent=drqv2", "replay.demos=null", "replay.demo_share=0.5"], "there are no demonstrations"),
        (["agent=drqv2", "replay.demos=null", "agent.cloning.updates=5"], "there are no demonstrations"),
        (["agent=drqv2"], "replay.demos would not be learned from"),
        (["agent=drqv2", "agent.cloning.updates=5"], "agent.cloning.weight .* needs demonstrations in the batches"),
        (["agent=drqv2", *CLONED[1:], "env.resolution=16"], r"their pixels is \[3, 32, 32\], .* \[3, 16, 16\]"),
        (["agent=drqv2", *CLONED[1:], "env.action_repeat=2"], "of action_repeat 1, and the environment's .* is 2"),
        (["agent=random", "replay.demo_share=0.5", "+agent.cloning._target_=mbrl.agents.cloning.Cloning",
          "+agent.cloning.updates=5", "+agent.cloning.weight=0"],
         "RandomPolicy imitates no demonstrations: set agent.cloning.updates=0"),
        ([*PLANS], r"RandomPolicy imitates .* or give the planner a prior that does, \+policy@agent\.policy=drqv2_cpu"),
        ([*PLANS, "agent.planning.proposals=4"], r"proposals \(4\) need a prior that acts on frames alone, such as"),
        ([*PLANS, "+policy@agent.policy=drqv2_cpu"], "a prior that is not used: set agent.planning.proposals above 0"),
        (["agent=bc", "agent.cloning.anchor=true"],
         "BehaviourCloning has no Q-functions: set agent.cloning.critic_updates=0 agent.cloning.anchor=false"),
        (["agent=random", "experiment=demonstrations"],
         r"agent\.cloning=.* is not allowed: it must be settings whose _target_ makes a Cloning or null"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_refused(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(compose(tmp_path, *overrides))
    assert not (tmp_path / "run" / "config.yaml").exists(), "before the run folder belongs to this run"


def test_demonstrations_of_something_else_are_refused(tmp_path, caplog):
    def read(folder: str, *overrides: str):
        config = compose_config(tmp_path / "run", f"replay.demos={folder}", "env.resolution=32", *CLONED, *overrides)
        return build_replay(config, tmp_path / "replay").demos

    folder = write_toy(tmp_path / "demos", 2, **TOY_SETTINGS)
    with pytest.raises(ValueError, match=r"episode-00000\.safetensors is of task toy, .* task is door-lock"):
        read(folder, "env.task=door-lock")
    assert len(read(folder, "env=toy", "env.resolution=32")) == 40 and not caplog.records
    silent = tmp_path / "silent"  # as older files are
    write_episodes(silent, play_expert(2, **TOY_SETTINGS))
    assert len(read(str(silent), "env=toy", "env.resolution=32")) == 40
    assert [record.message for record in caplog.records] == [
        f"2 demonstrations in {silent} do not say their task: they are taken for toy"
    ]


@pytest.mark.parametrize(
    ("lacking", "agent", "message"),
    [("state", "sac", "hold no state"), ("pixels", "drqv2", "hold no pixels"), ("pixels", "bc", "hold no pixels")],
)
def test_observations_that_demonstrations_lack(tmp_path, lacking, agent, message):
    episodes = [records.exclude(lacking) for records in play_expert(2, **TOY_SETTINGS)]
    write_episodes(tmp_path / "demos", episodes)
    overrides = [f"agent={agent}", "replay.demo_share=0.5"]
    with pytest.raises(ValueError, match=message):
        run(compose(tmp_path, *overrides, demos=str(tmp_path / "demos")))


def test_actions_of_another_size(tmp_path):
    episodes = play_expert(2, **TOY_SETTINGS)
    for records in episodes:
        records["action"] = torch.zeros(len(records), 3)
    write_episodes(tmp_path / "demos", episodes)
    with pytest.raises(ValueError, match=r"their action is \[3\], the environment's \[2\]"):
        run(compose(tmp_path, *CLONED, demos=str(tmp_path / "demos")))


def test_demonstrations_shorter_than_a_segment(tmp_path, caplog):
    """A world model never draws them: refused where all are, told of where some are."""
    long, short = play_expert(2, **TOY_SETTINGS)
    write_episodes(tmp_path / "short", [short[:11]])
    settings = ["agent=dreamerv3", "replay.demo_share=0.5", "agent.policy.world_model.units=32"]
    with pytest.raises(ValueError, match=r"none has the 12 frames .* and the longest has 11"):
        build(compose(tmp_path, *settings, "agent.segment_length=12", demos=str(tmp_path / "short")))
    write_episodes(tmp_path / "mixed", [short[:11], long])
    build(compose(tmp_path, *settings, "agent.segment_length=12", demos=str(tmp_path / "mixed"))).close()
    assert "no demonstration of less than 12 frames: 1 are shorter" in caplog.text


def test_pictures_that_nobody_looks_at_are_told_of(tmp_path, caplog):
    for agent in ("sac", "drqv2"):
        build(compose(tmp_path / agent, f"agent={agent}", "replay.demo_share=0.5", "agent.pixels=true")).close()
    told = [record.message for record in caplog.records if "renders pixels" in record.message]
    assert told == ["agent.pixels=true renders pixels, and sac does not read them: set it to false"]


def test_pictures_that_a_state_agent_does_not_see_are_not_kept(tmp_path):
    config = compose(tmp_path, "agent=sac", "replay.demo_share=0.5")
    assert "pixels" not in build_replay(config, tmp_path / "replay").demos.records.keys()


@pytest.mark.process
def test_metrics_say_that_imitation_came_first(tmp_path):
    folder = run(compose(tmp_path, *CLONED))
    first, second = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:2])
    assert (first["env_steps"], first["gradient_steps"]) == (0, 7) and "policy/cloning_loss" in first
    assert second["env_steps"] == 0 and "eval/success" in second
    assert [curve.agent for curve in read_curves([folder])] == ["drqv2 + demos"], "no curve mixes it with runs without"
