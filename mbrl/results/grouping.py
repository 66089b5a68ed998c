"""Which runs are seeds of one experiment: runs whose settings differ get different names and are never averaged."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mbrl.errors import one_line

Settings = Mapping[str, Any]  # dotted keys: "agent.real_ratio" -> 0.5

# settings in which the seeds of one experiment may differ: seed, task, place, length, hardware, what is written, and
# the size that stands for settings which are compared themselves, as runs of earlier versions lack it
PER_RUN = {
    "seed", "env.task", "run_dir", "total_env_steps", "device", "threads", "checkpoint_every", "video", "eval.every",
    "wandb", "collect.backend", "agent.policy.task", "agent.size", "replay.device",
}  # fmt: skip
PER_TASK = {
    "env._target_",
    "env.id",
    "env.tasks",
    "replay.demos",
}  # belong to a task, so that only runs of one task must agree
# evaluation protocol: must be equal for different agents to be comparable. Observations are not part of it.
PROTOCOL = {
    "env.action_repeat", "env.episode_length", "env.goals", "eval.episodes", "eval.seed", "eval.success",
    "protocol.name",
}  # fmt: skip
NAMED = "protocol.name"  # of the files in configs/protocol, which set some of these:
SET_BY_NAME = (PROTOCOL - {NAMED, "eval.seed"}) | {
    "env.success_bonus", "env.resolution", "env.camera", "env.mirrored", "env.frame_stack",
}  # fmt: skip
COPIED = ".env."  # in the keys of a part of an agent that has the run's environment as a setting of its own
MAX_NAMED = 3  # settings in a name; the others become a checksum
MAX_NAME = 80  # characters of an agent's or a task's name; longer names are shortened
MAX_VALUE = 24  # characters of a setting's value in a name; longer values are shortened


def short_name(text: str) -> str:
    """A name of printable characters that fits into a legend; names that differ stay different."""
    clean = one_line(text)
    if clean == text and 0 < len(text) <= MAX_NAME:
        return text
    return f"{clean[: MAX_NAME // 2]}…{_checksum(text)}"


def task_name(text: str) -> str:
    """The name of a task: Meta-World's `reach` and `reach-v3` are one."""
    return short_name(text).removesuffix("-v3")


def distinct_names(agents: Sequence[str], settings: Sequence[Settings | None]) -> list[str]:
    """Append to each agent's name, in brackets, the settings in which runs of that name differ.

    If the evaluation protocol differs between any two runs, the name of every run contains its protocol: its name in
    configs/protocol, and the settings that do not follow from it.

    Args:
        agents: agent names, one for each run.
        settings: settings of the runs in the same order. Runs without settings (CSV files) keep their names.

    Returns:
        One name for each run. Runs with the same name are seeds of one experiment.
    """
    every = [one for one in settings if one is not None]
    protocol = _varying(every) & PROTOCOL
    implied = {key for key in SET_BY_NAME if NAMED in protocol and _follows_from_name(key, every)}
    varying: dict[str, set[str]] = defaultdict(set)
    for agent in set(agents):
        same_name = [one for name, one in zip(agents, settings, strict=True) if name == agent and one is not None]
        varying[agent] = (_varying(same_name) | protocol) - implied
    differences = [_describe(one, varying[name]) for name, one in zip(agents, settings, strict=True)]
    return [f"{name} [{text}]" if text else name for name, text in zip(agents, differences, strict=True)]


def names_by_study(names: Sequence[str], studies: Sequence[Path | None]) -> list[str]:
    """Append to each name that several studies share, in brackets, the folder of the study.

    Args:
        names: agent names, one for each file.
        studies: folders of the studies of CSV files, in the same order. None for runs, which keep their names: their
            settings tell them apart.

    Returns:
        One name for each file.
    """
    sharing: dict[str, set[Path | None]] = defaultdict(set)
    for name, study in zip(names, studies, strict=True):
        sharing[name].add(study)
    shortest = _shortest_distinct({study for study in studies if study is not None})
    return [
        f"{name} [{short_name(shortest[study])}]" if study is not None and len(sharing[name]) > 1 else name
        for name, study in zip(names, studies, strict=True)
    ]


def _shortest_distinct(folders: Collection[Path]) -> dict[Path, str]:
    """The last parts of each path, as few as keep the paths distinct."""
    for count in range(1, 1 + max((len(folder.parts) for folder in folders), default=0)):
        endings = {folder: "/".join(folder.parts[-count:]) for folder in folders}
        if len(set(endings.values())) == len(folders):
            return endings
    return {folder: str(folder) for folder in folders}


def _follows_from_name(key: str, settings: Sequence[Settings]) -> bool:
    """Whether runs with the same protocol by name have the same value."""
    return len({(str(one.get(NAMED)), str(one.get(key))) for one in settings}) == len(
        {str(one.get(NAMED)) for one in settings}
    )


def _varying(settings: Sequence[Settings]) -> set[str]:
    """The keys whose values differ between the runs or, for PER_TASK, between runs of one task."""
    keys = {key for one in settings for key in one if COPIED not in key} - PER_RUN
    by_task: dict[Any, list[Settings]] = defaultdict(list)
    for one in settings:
        by_task[task_name(str(one.get("env.task")))].append(one)

    def varies(key: str) -> bool:
        groups = by_task.values() if key in PER_TASK else [settings]
        return any(one.get(key) != group[0].get(key) for group in groups for one in group)

    return {key for key in keys if varies(key)}


def _describe(settings: Settings | None, keys: set[str]) -> str:
    if settings is None or not keys:
        return ""
    pairs = [
        f"{_short_key(key)}={_shorten(short_name(str(settings.get(key, '–'))))}"
        for key in sorted(keys, key=lambda key: (key != NAMED, key))
    ]
    if len(pairs) <= MAX_NAMED:
        return ", ".join(pairs)
    # a checksum of the remaining settings keeps different experiments apart
    return f"{', '.join(pairs[:MAX_NAMED])}, {len(pairs) - MAX_NAMED} more: {_checksum(repr(pairs[MAX_NAMED:]))}"


def _short_key(key: str) -> str:
    return "protocol" if key == NAMED else short_name(key.removeprefix("agent."))


def _shorten(value: str) -> str:
    return value if len(value) <= MAX_VALUE else f"{value[: MAX_VALUE // 2]}…{_checksum(value)}"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='surrogatepass')) & 0xFFFF:04x}"
