"""Nonsense in every numeric setting of every agent, up to the construction of its run."""

import logging
import shutil
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from mbrl.cli.errors import explain, root_cause
from mbrl.compose import configurations, groups, override_of
from mbrl.training import build, check
from tests.demonstrations import write_toy
from tests.faults.runs import Result

SMALL = ["experiment=smoke", "total_env_steps=60", "env.episode_length=20", "device=cpu", "threads=1"]
WITH_DEMOS = ("bc",)  # agents that need demonstrations
NONSENSE: tuple[Any, ...] = (-1, 0, "abc", None, 1e30, 2.5)
SHORT_AGENTS, SHORT_EVERY = ("sac", "mbpo_ivideogpt"), 17


def tried(folder: Path, *, agents: tuple[str, ...] = (), short: bool) -> Iterator[Result]:
    """Each value of NONSENSE in each setting that is a number or null, agent by agent, in the toy environment."""
    folder.mkdir(parents=True, exist_ok=True)
    demos = write_toy(folder / "demos", 2, episode_length=20, resolution=64)
    logging.disable(logging.WARNING)
    for agent in agents or (SHORT_AGENTS if short else groups()["agent"]):
        overrides = [*SMALL, f"env={'metaworld' if agent == 'scripted' else 'toy'}", f"agent={agent}"]
        overrides += [f"replay.demos={demos}"] * (agent in WITH_DEMOS)
        with configurations():
            whole = compose("train", overrides=overrides)
        assert _fault(whole, folder / "run") is None, f"{agent} is built as it is"
        cases = [(key, value) for key in _numbers(whole) for value in NONSENSE]
        for key, value in cases[:: SHORT_EVERY if short else 1]:
            yield _try(whole, agent, key, value, folder / "run")


def _numbers(config: DictConfig) -> list[str]:
    """Keys of all settings that are numbers or null."""
    found: list[str] = []

    def visit(node: Any, place: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                visit(value, f"{place}.{key}" if place else str(key))
        elif node is None or (isinstance(node, int | float | list) and not isinstance(node, bool)):
            found.append(place)

    visit(OmegaConf.to_container(config, resolve=True), "")
    return found


def _try(whole: DictConfig, agent: str, key: str, value: Any, run: Path) -> Result:
    config = whole.copy()
    OmegaConf.update(config, key, value)
    fault = _fault(config, run)
    kind, name = f"nonsense in a setting, {agent}", override_of(key, value)
    if fault is None:
        return Result(kind, name, "survived")
    explained = explain(root_cause(fault))
    if explained is None:
        return Result(kind, name, "failed", "".join(traceback.format_exception(fault))[-1500:])
    return Result(kind, name, "one line", explained[0])


def _fault(config: DictConfig, run: Path) -> Exception | None:
    """The error of building a run; None where it is built."""
    shutil.rmtree(run, ignore_errors=True)
    OmegaConf.update(config, "run_dir", str(run))
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            build_checked(config)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what came of the value
        return error
    return None


def build_checked(config: DictConfig) -> None:
    check(config)
    build(config).close()
