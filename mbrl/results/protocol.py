"""What to call runs whose settings differ, so that no mean is ever taken over different experiments."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]  # flat: "agent.real_ratio" -> 0.5

# which seed and task a run has, where it ran and how long, and what it wrote on the way: seeds may differ in these
OF_ONE_RUN = {
    "seed", "env.task", "run_dir", "total_env_steps", "device", "threads", "checkpoint_every", "video", "eval.every",
    "wandb", "collect.backend", "agent.policy.task",
}  # fmt: skip
OF_ONE_TASK = {"env._target_", "env.tasks", "replay.demos"}  # what belongs to a task: compared among its runs alone
# what must be equal for different agents to be compared; how they see the scene is their own
PROTOCOL = {"env.action_repeat", "env.episode_length", "env.goals", "eval.episodes", "eval.seed"}
NAMED = 3  # settings in a name at most
LONG = 24  # characters of a value that are named


def distinct_names(agents: Sequence[str], settings: Sequence[Settings | None]) -> list[str]:
    """The agents' names, each with the settings in brackets in which it differs from its namesakes.

    Where the protocol (environment, evaluation) differs between any two runs, every run is named with its own. Runs
    without settings (CSV files) keep their names.
    """
    described = [settings for settings in settings if settings is not None]
    protocol = _varying(described) & PROTOCOL
    varying: dict[str, set[str]] = defaultdict(set)
    for agent in set(agents):
        own = [its for name, its in zip(agents, settings, strict=True) if name == agent and its is not None]
        varying[agent] = _varying(own) | protocol
    told = [_tell(its, varying[name]) for name, its in zip(agents, settings, strict=True)]
    return [f"{name} [{text}]" if text else name for name, text in zip(agents, told, strict=True)]


def _varying(settings: Sequence[Settings]) -> set[str]:
    """The keys that do not have one value in all of them, or in all of one task."""
    keys = {key for its in settings for key in its} - OF_ONE_RUN
    of_tasks: dict[Any, list[Settings]] = defaultdict(list)
    for its in settings:
        of_tasks[its.get("env.task")].append(its)

    def varies(key: str) -> bool:
        groups = of_tasks.values() if key in OF_ONE_TASK else [settings]
        return any(its.get(key) != group[0].get(key) for group in groups for its in group)

    return {key for key in keys if varies(key)}


def _tell(settings: Settings | None, keys: set[str]) -> str:
    if settings is None or not keys:
        return ""
    pairs = [f"{key.removeprefix('agent.')}={_short(str(settings.get(key, '–')))}" for key in sorted(keys)]
    if len(pairs) <= NAMED:
        return ", ".join(pairs)
    # the rest keeps different experiments apart by a short name of its own
    return f"{', '.join(pairs[:NAMED])}, {len(pairs) - NAMED} more: {_digest(repr(pairs[NAMED:]))}"


def _short(value: str) -> str:
    return value if len(value) <= LONG else f"{value[: LONG // 2]}…{_digest(value)}"


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode()) & 0xFFFF:04x}"
