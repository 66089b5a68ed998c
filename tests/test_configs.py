"""Every configuration composes, and every agent it names can be built."""

import re
from itertools import takewhile

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded

import mbrl
from mbrl.agents.agent import Agent
from mbrl.build import build_agent, build_policy, build_replay
from mbrl.compose import CONFIGS, composed_jobs
from mbrl.errors import UserError
from mbrl.pretraining.pretrain import PHASES
from mbrl.pretraining.pretrain import check as check_pretraining
from mbrl.settings.resolvers import discount
from mbrl.targets import make
from mbrl.training import check
from policies.base import Planner, Policy
from tests.demonstrations import write_episodes
from worldmodel.base import WorldModel

ROOT = CONFIGS


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / group).glob("*.yaml"))


def observations(side: int) -> Composite:
    return Composite(
        snapshot=Unbounded((9,), dtype=torch.float64),
        pixels=Bounded(0, 255, (3, side, side), dtype=torch.uint8),
        frames=Bounded(0, 255, (9, side, side), dtype=torch.uint8),
        state=Unbounded((39,)),
    )


class Specs:
    """What building an agent needs of Meta-World, without its simulator."""

    observation_spec = observations(64)
    action_spec = Bounded(-1, 1, (4,))


def config(*overrides: str):
    with initialize_config_module("configs", version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize("name", names("agent"))
def test_every_agent_is_built(name, tmp_path):
    settings = config(f"agent={name}", "total_env_steps=400")
    if (settings.agent.get("cloning") or {}).get("updates"):  # it imitates, so it needs demonstrations
        with pytest.raises(ValueError, match="there are no demonstrations"):
            check(settings)
        write_episodes(tmp_path / "demos", [demonstration()])
        settings.replay.demos = str(tmp_path / "demos")
    check(settings)
    policy = build_policy(settings, Specs())
    agent = build_agent(settings, Specs(), policy, build_replay(settings, tmp_path, Specs(), policy))
    assert isinstance(agent, Agent) and settings.agent.name == name


def demonstration() -> TensorDict:
    flags = torch.tensor([[False], [True], [False]])
    return TensorDict(
        pixels=torch.zeros(3, 3, 64, 64, dtype=torch.uint8), action=torch.zeros(3, 4), reward=torch.ones(3, 1),
        success=flags, terminated=torch.zeros_like(flags), truncated=flags.clone(), batch_size=[3],
    )  # fmt: skip


def test_demonstrations_earn_the_bonus_that_the_environment_pays(tmp_path):
    write_episodes(tmp_path / "demos", [demonstration()])
    settings = config("env.success_bonus=10", f"replay.demos={tmp_path / 'demos'}", "replay.demo_share=0.5")
    replay = build_replay(settings, tmp_path / "replay", Specs(), build_policy(settings, Specs()))
    assert replay.demos.records["reward"].flatten().tolist() == [1.0, 11.0, 1.0]


@pytest.mark.parametrize("group", ["env", "experiment", "protocol"])
def test_every_choice_composes(group):
    for name in names(group):
        given = ["env.id=Pendulum-v1"] if name == "gym" else []
        settings = config(f"{group}={name}", *given)
        OmegaConf.resolve(settings)
        check(settings)


@pytest.mark.parametrize("group", ["policy", "worldmodel"])
def test_every_part_is_built(group):
    for name in names(group):
        settings = config(f"+{group}@part={name}").part
        if "env" in settings or "simulator" in settings:
            continue  # A simulator allocates: `test_every_agent_is_built` does it.
        side = settings.tokenizer.resolution if "tokenizer" in settings else 64
        with torch.device("meta"):  # sizes and names are checked, nothing is allocated
            part = make(settings, nn.Module, observation_spec=observations(side), action_spec=Specs.action_spec)
        assert sum(p.numel() for p in part.parameters()) > 0


@pytest.mark.parametrize("name", names("planner"))
def test_every_planner_is_built(name):
    planner = make(config(f"+planner@part={name}").part, Planner)
    assert isinstance(planner, Planner) and planner.candidates >= planner.elites


@pytest.mark.parametrize("name", names("pretraining"))
def test_every_world_model_can_be_pretrained(name):
    with initialize_config_module("configs", version_base="1.3"):
        settings = compose("pretrain", [f"worldmodel={name}", "data={some/folder: 1.0}"])
    OmegaConf.resolve(settings)
    check_pretraining(settings)
    seen = observations(settings.worldmodel.tokenizer.resolution)
    with torch.device("meta"):
        model = make(settings.worldmodel, WorldModel, observation_spec=seen, action_spec=Specs.action_spec)
    for phase in PHASES:
        assert settings[phase].steps > settings[phase].warmup > 0
        assert model.optimizers[phase].param_groups[0]["lr"] == settings[phase].learning_rate


@pytest.mark.parametrize("name", names("agent"))
def test_yaml_header_says_how_to_run_it(name):
    text = (ROOT / "agent" / f"{name}.yaml").read_text()
    header = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    assert f"agent={name}" in header and OmegaConf.create(text).name == name


@pytest.mark.parametrize(
    ("name", "tokenizer", "transformer"),
    [("ivideogpt_base", 114_159_174, 138_434_304), ("ivideogpt_base256", 310_472_774, 138_434_304)],
)
def test_base_models_have_the_published_sizes(name, tokenizer, transformer):
    """Beside the action layer and the reward head, which no published file of these holds."""
    settings = config(f"+worldmodel@part={name}").part
    with torch.device("meta"):
        seen = observations(settings.tokenizer.resolution)
        model = make(settings, WorldModel, observation_spec=seen, action_spec=Specs.action_spec)
    assert sum(p.numel() for p in model.tokenizer.parameters()) == tokenizer
    assert sum(p.numel() for p in model.transformer.llm.parameters()) == transformer


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ([], 1_040_742),
        (["agent.size=5M"], 4_955_238),
        (["agent.policy.world_model.width=384", "agent.policy.behaviour.critics=2"], 1_213_879),  # the published 1M
    ],
)
def test_one_setting_is_the_size_of_tdmpc2(settings: list[str], parameters: int) -> None:
    """Without the target critics."""
    policy = config("agent=tdmpc2", *settings).agent.policy
    assert policy.behaviour.width == policy.world_model.width
    with torch.device("meta"):
        made = make(policy, Policy, observation_spec=Specs.observation_spec, action_spec=Specs.action_spec)
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == parameters


PAPER = "experiment=ivideogpt_paper"


def test_the_paper_trains_the_published_sizes_at_the_published_rates() -> None:
    settings = config(PAPER, "agent=mbpo_ivideogpt").agent
    published = config("+policy@part=drqv2", "+worldmodel@model=ivideogpt_base", PAPER)
    assert settings.policy == published.part == config(PAPER, "agent=drqv2").agent.policy
    assert settings.world_model == published.model
    assert settings.updates_per_step * settings.batch_size == 512 and settings.real_ratio == 0.5
    assert published.part.std_env_steps == 100_000 * published.env.action_repeat, "published in agent steps"
    assert settings.model_updates_per_step * settings.model_batch_size == pytest.approx(0.2 * 16)
    dreamer = config(PAPER, "agent=dreamerv3").agent
    assert dreamer.updates_per_step * dreamer.batch_size * dreamer.segment_length == 512  # its train ratio


@pytest.mark.parametrize(("task", "demos", "share"), [("hammer", "runs/demos/hammer", 0.03), ("door-lock", None, 0.0)])
def test_the_paper_has_demonstrations_of_all_tasks_but_one(task: str, demos: str | None, share: float) -> None:
    replay = config(PAPER, f"env.task={task}").replay
    assert (replay.demos, replay.demo_share) == (demos, share)


def test_what_a_study_sets_for_one_agent_names_both() -> None:
    files = {file.stem for file in (ROOT / "experiment" / "per_agent").glob("*.yaml")}
    assert files <= {f"{study}_{agent}" for study in names("experiment") for agent in names("agent")}
    assert config("experiment=smoke", "agent=mbpo").agent.world_model.width == 16
    assert config("agent=mbpo").agent.world_model.width == 200


@pytest.mark.parametrize("study", ["state", "quickstart"])
def test_studies_from_state_train_mbpo_unless_an_agent_is_chosen(study: str) -> None:
    default = config(f"experiment={study}")
    assert default.agent.name == "mbpo" and not default.env.pixels
    assert config("agent=sac", f"experiment={study}").agent.name == "sac"
    jobs = composed_jobs([f"experiment={study}", "agent=sac,tdmpc2"])
    assert [job.agent.name for _, job in jobs] == ["sac", "tdmpc2"]


@pytest.mark.parametrize("agent", names("agent"))
def test_every_agent_has_a_smoke_experiment(agent: str) -> None:
    needed = ["replay.demos=some/folder"] if agent == "bc" else []
    check(config("experiment=smoke", f"agent={agent}", *needed))


@pytest.mark.parametrize(
    ("overrides", "gamma"),
    [
        ([], 0.95),  # 100 agent steps
        (["env.episode_length=500", "env.action_repeat=1"], 0.99),
        (["env.episode_length=500", "env.action_repeat=2"], 0.98),
        (["env=toy"], 0.95),  # 50 agent steps: 0.9 by the rule, but no less than 0.95
        (["agent.gamma=0.9"], 0.9),
    ],
)
def test_the_discount_follows_from_the_length_of_an_episode(overrides: list[str], gamma: float) -> None:
    every = ("drqv2", "sac", "mbpo_ivideogpt", "dreamerv3", "tdmpc2", "mpc_ivideogpt")
    for agent in every[: 2 if overrides else None]:
        settings = config(f"agent={agent}", *overrides)
        assert settings.agent.gamma == settings.replay.gamma == pytest.approx(gamma)
    assert discount({"episode_length": 10_000}) == 0.995


@pytest.mark.parametrize(("env", "kept"), [("metaworld", True), ("toy", True), ("mt10", False), ("dmc", False)])
def test_snapshots_are_kept_where_the_environment_has_them(env: str, kept: bool) -> None:
    assert config("agent=mpc_ivideogpt", f"env={env}").env.snapshots is kept
    assert not config("agent=mbpo_ivideogpt", f"env={env}").env.snapshots


@pytest.mark.parametrize(("deterministic", "captured"), [(False, True), (True, False)])
def test_a_gpu_takes_updates_from_graphs_unless_bits_are_to_repeat(deterministic: bool, captured: bool) -> None:
    settings = config("agent=mbpo_ivideogpt", f"deterministic={deterministic}")
    found = settings.cuda_graphs, settings.agent.policy.cuda_graphs, settings.agent.world_model.cuda_graphs
    assert found == (captured,) * 3


@pytest.mark.parametrize("sweep", ["seed=0,1", "seed=interval(0,3)", "agent=sac,mbpo"])
def test_one_run_takes_no_sweep(sweep):
    with pytest.raises(UserError, match=f"^{re.escape(sweep)} has several values: one run takes one"):
        mbrl.train([sweep])
