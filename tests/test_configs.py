"""Every configuration composes, and every agent it names can be built."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torchrl.data import Bounded, Composite, Unbounded

import configs
from mbrl.agent import Agent
from mbrl.build import build_agent, build_replay, make
from mbrl.train import check

ROOT = Path(configs.__file__).parent


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / group).glob("*.yaml"))


def observations(side: int) -> Composite:
    return Composite(
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
    check(settings)
    agent = build_agent(settings, Specs(), build_replay(settings, tmp_path))
    assert isinstance(agent, Agent) and settings.agent.name == name


@pytest.mark.parametrize("group", ["env", "experiment"])
def test_every_choice_composes(group):
    for name in names(group):
        settings = config(f"{group}={name}")
        OmegaConf.resolve(settings)
        check(settings)


@pytest.mark.parametrize("group", ["policy", "worldmodel"])
def test_every_part_is_built(group):
    for name in names(group):
        settings = config(f"+{group}@part={name}").part
        side = settings.tokenizer.resolution if "tokenizer" in settings else 64
        with torch.device("meta"):  # sizes and names are checked, nothing is allocated
            part = make(settings, observation_spec=observations(side), action_spec=Specs.action_spec)
        assert sum(p.numel() for p in part.parameters()) > 0


@pytest.mark.parametrize("name", names("agent"))
def test_yaml_header_says_how_to_run_it(name):
    text = (ROOT / "agent" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert not OmegaConf.is_missing(OmegaConf.create(text), "name")


@pytest.mark.parametrize(
    ("name", "tokenizer", "transformer"),
    [("ivideogpt_base", 114_159_174, 138_434_304), ("ivideogpt_base256", 310_472_774, 138_434_304)],
)
def test_base_models_have_the_published_sizes(name, tokenizer, transformer):
    """Beside the action layer and the reward head, which no published file of these holds."""
    settings = config(f"+worldmodel@part={name}").part
    with torch.device("meta"):
        model = make(
            settings, observation_spec=observations(settings.tokenizer.resolution), action_spec=Specs.action_spec
        )
    assert sum(p.numel() for p in model.tokenizer.parameters()) == tokenizer
    assert sum(p.numel() for p in model.transformer.llm.parameters()) == transformer
