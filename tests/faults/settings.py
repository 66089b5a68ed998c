"""Nonsense in every numeric setting, up to the construction of what it sets: told in one line, or meaningful."""

import logging
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from omegaconf import DictConfig, ListConfig, OmegaConf

from mbrl import training
from mbrl.cli.errors import explain, root_cause
from mbrl.compose import configurations, groups
from mbrl.pretraining import pretrain
from mbrl.settings.overrides import override_of
from tests.demonstrations import write_toy
from tests.faults.runs import Result

SMALL = ["experiment=smoke", "total_env_steps=60", "env.episode_length=20", "device=cpu", "threads=1"]
ENVS = ("metaworld", "mt10")  # beside the toy environment, in which every agent is built
NONSENSE: tuple[Any, ...] = (-1, 0, "abc", None, 1e30, 2.5)
SHORT_AGENTS, SHORT_EVERY = ("sac", "mbpo_ivideogpt"), 97


class Composed(NamedTuple):
    """A configuration in which every setting under `prefix` gets each value of NONSENSE.

    Attributes:
        name: of the kind of fault.
        config: the configuration as it is.
        build: builds what it sets, in the folder that is its second argument.
        prefix: beginning of the keys.
    """

    name: str
    config: DictConfig
    build: Callable[[DictConfig, Path], None]
    prefix: str = ""


def tried(folder: Path, *, short: bool) -> Iterator[Result]:
    """Each value of NONSENSE in each setting that is a number, a list or null."""
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    try:
        demos = write_toy(folder / "demos", 4, episode_length=20, resolution=64)
        for composed in _composed(demos, short):
            fault = _fault(composed, composed.config, folder / "run")
            assert fault is None, f"{composed.name} cannot be built as it is: {fault}"
            cases = [(key, value) for key in _numbers(composed) for value in NONSENSE]
            for key, value in cases[:: SHORT_EVERY if short else 1]:
                yield _try(composed, key, value, folder / "run")
    finally:
        logging.disable(logging.NOTSET)


def _composed(demos: str, short: bool) -> Iterator[Composed]:
    for agent in SHORT_AGENTS if short else groups()["agent"]:
        # The scripted policy is that of a task of Meta-World, and cloning needs demonstrations.
        env = "metaworld" if agent == "scripted" else "toy"
        needed = [f"replay.demos={demos}"] * (agent == "bc")
        config = _compose("train", *SMALL, f"env={env}", f"agent={agent}", *needed)
        yield Composed(f"nonsense in a setting, {agent}", config, _build_run)
    if short:
        return
    for env in ENVS:
        config = _compose("train", *SMALL, f"env={env}", "agent=sac")
        yield Composed(f"nonsense in a setting, {env}", config, _build_run, "env.")
    config = _compose(
        "pretrain", f"data={{{demos}: 1.0}}", "device=cpu", "threads=1", "workers=0", "validation.share=0.5"
    )
    yield Composed("nonsense in a setting, pretrain", config, _build_pretraining)


def _compose(root: str, *overrides: str) -> DictConfig:
    with configurations():
        return compose(root, overrides=list(overrides))


def _build_run(config: DictConfig, folder: Path) -> None:
    config.run_dir = str(folder)
    training.check(config)
    training.build(config).close()


def _build_pretraining(config: DictConfig, folder: Path) -> None:
    config.output = str(folder)
    pretrain.check(config)
    parts = pretrain.build(config)
    assert parts.lock is not None
    parts.lock.release()
    for name in pretrain.PHASES:
        pretrain.build_phase(config, parts, name)


def _numbers(composed: Composed) -> list[str]:
    """Keys of all settings that are numbers, lists or null; of settings that are those of another place, none."""
    found: list[str] = []

    def visit(node: DictConfig, place: str) -> None:
        for key in node:
            child, value = node._get_node(key), node[key]
            if isinstance(value, DictConfig):
                if not child._is_interpolation():
                    visit(value, f"{place}{key}.")
            elif not isinstance(value, bool | str):
                assert value is None or isinstance(value, int | float | ListConfig)
                found.append(f"{place}{key}")

    visit(composed.config, "")
    return [key for key in found if key.startswith(composed.prefix)]


def _try(composed: Composed, key: str, value: Any, run: Path) -> Result:
    config = composed.config.copy()
    OmegaConf.update(config, key, value)
    fault = _fault(composed, config, run)
    name = override_of(key, value)
    if fault is None:
        return Result(composed.name, name, "survived")
    explained = explain(root_cause(fault))
    if explained is None:
        return Result(composed.name, name, "failed", "".join(traceback.format_exception(fault))[-1500:])
    return Result(composed.name, name, "one line", explained[0])


def _fault(composed: Composed, config: DictConfig, run: Path) -> Exception | None:
    """The error of building; None where it is built."""
    shutil.rmtree(run, ignore_errors=True)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            composed.build(config.copy(), run)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what came of the value
        return error
    return None
