"""`mbrl train ... --estimate`: what a run or a sweep will take on this machine. Nothing is written to run folders.

Each kind of run is measured in a process of its own, which `python -m mbrl.cli.estimate` is: a configuration on stdin,
an `Estimate` as JSON on the last line of stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mbrl.cli.errors import show
from mbrl.cli.jobs import ALIKE, Machine, at_a_time, chooses_jobs, hydra_settings, kind_of
from mbrl.cli.tables import print_table
from mbrl.compose import composed_jobs
from mbrl.errors import UserError
from mbrl.estimating.measure import Estimate, measure

GB = 1e9
HEADER = ("run", "runs", "env steps/s", "hours", "memory", "GPU memory", "disk")


def estimate(
    arguments: Sequence[str],
    check: Callable[[DictConfig], None],
    config_dir: Path | None = None,
) -> int:
    """Measure each kind of run of a command and print a table; returns the exit code.

    Runs that differ in seed and task alone are of one kind.

    Args:
        arguments: Hydra's overrides, of a run or of a sweep.
        check: raises UserError for a configuration that cannot be run.
        config_dir: a user's own folder of configurations.
    """
    jobs = composed_jobs(arguments, config_dir=config_dir)
    for _, config in jobs:
        check(config)
    kinds: dict[str, list[int]] = {}
    for number, (_, config) in enumerate(jobs):
        kinds.setdefault(kind_of(config), []).append(number)
    rows: list[tuple[str, ...]] = [HEADER]
    hours, disk = 0.0, 0.0
    for count, numbers in enumerate(kinds.values(), 1):
        overrides, config = jobs[numbers[0]]
        name = _name(overrides, config)
        print(f"mbrl: measuring {name} on {config.env.task} ({count} of {len(kinds)})", file=sys.stderr)
        measured = measured_apart(config)
        rows.append(_row(name, len(numbers), measured))
        _explain_time(name, measured)
        hours += measured.hours * len(numbers)
        disk += measured.disk * len(numbers)
    print_table(rows)
    if len(jobs) > 1:
        local = chooses_jobs(hydra_settings(arguments, config_dir).launcher)
        together = at_a_time([config for _, config in jobs], Machine.here())[0] if local else 1
        print(f"all {len(jobs)} runs: {hours:.3g} h one after the other, {disk / GB:.1f} GB on disk")
        if together > 1:
            print(f"{together} at a time: {hours / together:.3g} h, if they do not slow each other down")
    return 0


def _name(overrides: Sequence[str], config: DictConfig) -> str:
    """The agent, and what else a sweep changes."""
    others = [line for line in overrides if line.split("=", 1)[0] not in ("agent", *ALIKE)]
    return " ".join([config.agent.name, *others])


def _row(name: str, runs: int, measured: Estimate) -> tuple[str, ...]:
    gpu = f"{measured.gpu_memory / GB:.1f} GB" if measured.gpu_memory else "-"
    rate = measured.env_steps / 3600 / measured.hours
    sizes = f"{measured.memory / GB:.1f} GB", gpu, f"{measured.disk / GB:.2f} GB"
    return name, str(runs), f"{rate:.3g}", f"{measured.hours:.3g}", *sizes


def _explain_time(name: str, measured: Estimate) -> None:
    """Print to stderr which parts of the run take its time."""
    total = sum(measured.seconds.values())
    shares = sorted(measured.seconds.items(), key=lambda part: -part[1])
    text = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in shares if seconds > 0)
    print(f"mbrl: {name}: {text}", file=sys.stderr)


def measured_apart(config: DictConfig) -> Estimate:
    """Measure one run in a process of its own.

    Raises:
        UserError: that process was killed.
        SystemExit: it failed, and has printed why.
    """
    command = [sys.executable, "-m", "mbrl.cli.estimate"]
    text = OmegaConf.to_yaml(config, resolve=True)
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode < 0:
        raise UserError(f"the measurement was ended by signal {-done.returncode}: there may be too little memory here")
    if done.returncode:
        raise SystemExit(done.returncode)
    return Estimate(**json.loads(done.stdout.strip().rsplit("\n", 1)[-1]))


def main() -> int:
    """Measure the configuration on stdin; returns the exit code."""
    try:
        config = OmegaConf.create(sys.stdin.read())
        assert isinstance(config, DictConfig)
        print(json.dumps(measure(config).as_dict()))
    except Exception as error:  # noqa: BLE001 - it is shown as the command line shows every error
        return show(error, in_run=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
