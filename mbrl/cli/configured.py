"""The commands with a configuration, `mbrl train` and `mbrl pretrain`: their help, and running them with Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mbrl.cli.errors import TRACEBACK, show
from mbrl.errors import UserError

TRAIN_HELP = """\
examples:
  mbrl train                                    the main job: mbpo_ivideogpt on one task, from pixels
  mbrl train agent=drqv2 env.task=door-lock seed=3
  mbrl train worldmodel@agent.world_model=ivideogpt_base
  mbrl train experiment=smoke                   a miniature run, to check the installation
  mbrl train --multirun seed=1,2,3              a sweep, one run after the other; given again, it runs what is missing
  mbrl train --multirun launch=local agent=sac,mbpo seed=0,1,2     as many in parallel as this machine has room for
  mbrl train agent=drqv2 --estimate             hours, memory and disk that it will take here; also with --multirun
  mbrl train --config-dir my_configs agent=mine    an agent of your own, from my_configs/agent/mine.yaml
  mbrl train agent=drqv2 --cfg job              print every setting and stop

The same command given again resumes the run from its last checkpoint.
Settings are Hydra overrides: key=value, or a.b=value inside a group. `mbrl train --hydra-help` lists Hydra's
own options. With MBRL_TRACEBACK=1 in the environment, every error shows its traceback.
"""

PRETRAIN_HELP = """\
examples:
  mbrl pretrain 'data={runs/data/window-close: 1.0}' output=runs/pretrained/nano
  mbrl pretrain 'data={runs/data/mt50: 1.0, runs/demos/door-lock: 0.3}' worldmodel=ivideogpt_base output=runs/base
  mbrl pretrain 'data={runs/demos/hammer: 1.0}' worldmodel.pretrained=runs/base tokenizer.steps=0 output=runs/tuned
  torchrun --nproc-per-node 2 -m mbrl pretrain ...     on several GPUs or processes
  mbrl train worldmodel.pretrained=runs/pretrained/nano      start an agent from the pretrained weights

The same command given again resumes from the last checkpoint. `mbrl pretrain --cfg job` prints every setting.
"""


class Configured(NamedTuple):
    """A command with a configuration.

    Attributes:
        module: has `run(config) -> Path | None` and, if the command has sweeps, `check(config)`.
        purpose: the first sentence of its help.
        groups: config groups to choose from.
        examples: the end of its help.
    """

    module: str
    purpose: str
    groups: tuple[str, ...]
    examples: str


TRAIN_GROUPS = (
    "agent", "cloning", "env", "experiment", "launch", "planner", "policy", "protocol", "reward_network", "worldmodel",
)  # fmt: skip
CONFIGURED = {
    "train": Configured(
        "mbrl.training", "Train an agent; the results go to a folder under runs/", TRAIN_GROUPS, TRAIN_HELP
    ),
    "pretrain": Configured(
        "mbrl.pretraining.pretrain", "Train a world model on folders of episodes", ("worldmodel",), PRETRAIN_HELP
    ),
}


ESTIMATE = "--estimate"
SHOWN = ("cfg", "info", "run", "shell_completion", "hydra_help")  # Hydra's options that run no sweep


def run_configured(command: str, arguments: Sequence[str]) -> int:
    """Compose configs/COMMAND.yaml with the overrides, and call `run` of the command's module with the result.

    Args:
        command: a key of CONFIGURED.
        arguments: Hydra's options and overrides.

    Returns:
        The exit code.

    Raises:
        UserError: an option, a setting or a group does not exist.
    """
    import hydra
    from omegaconf import DictConfig

    from mbrl.cli.jobs import dealing, hydra_settings, runs_here
    from mbrl.cli.sweep import naming_killed_worker, prepare, show_jobs
    from mbrl.compose import CONFIGS, check_overrides

    _require_text(arguments)
    estimates, arguments = _without(ESTIMATE, arguments) if command == "train" else (False, arguments)
    arguments = _settings_together(arguments)
    parsed, unknown = _read(arguments)
    config_dir = Path(parsed.config_dir) if parsed.config_dir else None
    if {"-h", "--help"} & set(arguments):
        print_help(command, config_dir)
        return 0
    if unknown:
        raise UserError(f"no option {unknown[0]!r}; settings are written key=value, see `mbrl {command} --help`")
    if not (parsed.config_path or parsed.config_name):
        check_overrides(parsed.overrides, command, config_dir)

    _require_one_action(parsed, estimates)
    check, swept = import_module(CONFIGURED[command].module).check, parsed.multirun and command == "train"
    overrides = _with_study_sweep(parsed.overrides, config_dir) if swept else parsed.overrides
    if estimates:
        from mbrl.cli.estimate import estimate

        return estimate(overrides, check, config_dir)
    launcher = hydra_settings(overrides, config_dir).launcher if swept else None
    here = launcher is None or runs_here(launcher)
    check = check if here else partial(check, here=False)
    folders = prepare(overrides, check, config_dir, command, here=here) if parsed.multirun else []
    launched, gpus = _jobs_at_a_time(launcher, overrides, config_dir) if launcher is not None else ([], [])

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)
    def job(config: DictConfig) -> None:
        _job(config, command, config_dir)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Otherwise Hydra prints errors itself, and main() does not receive them.
    sys.argv = [f"mbrl {command}", *arguments, *launched]
    with naming_killed_worker(), dealing(gpus):
        job()
    return show_jobs(folders)


def _job(config: Any, command: str, config_dir: Path | None) -> None:
    """Do what the command does with one configuration, which Hydra has composed."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from mbrl.cli.jobs import run_on_its_gpu
    from mbrl.cli.sweep import run_job

    settings, module = HydraConfig.get(), import_module(CONFIGURED[command].module)
    if settings.mode == RunMode.MULTIRUN and command == "train":
        # Only a job that is not done takes a GPU.
        run = partial(run_on_its_gpu, module.run)
        run_job(config, run, alone="BasicLauncher" in settings.launcher._target_)
        return
    try:
        folder = run_once(config, config_dir) if command == "train" else module.run(config)
        if folder is not None:  # None in all processes but one
            print(folder)
    except Exception as error:
        # Errors are printed here, because Hydra prints a line of its own before main() receives them. In a sweep
        # the next run follows instead.
        if settings.mode == RunMode.MULTIRUN or os.environ.get(TRACEBACK):
            raise
        sys.exit(show(error))


def _read(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """Hydra's options and overrides, and the arguments that are neither.

    Raises:
        UserError: an option lacks its value, or has one that it does not take.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign] # by itself it prints the usage and leaves
    return parser.parse_known_args(arguments)


def _settings_together(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments with all settings after the options: Hydra does not read settings on both sides of an option."""
    parsed, unread = _read(arguments)
    others = [argument for argument in unread if not argument.startswith("-")]
    if not others:
        return arguments
    settings = [*parsed.overrides, *others]
    return [*(argument for argument in arguments if argument not in settings), *settings]


def _without(option: str, arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether an option of ours is among the arguments, and the others."""
    return option in arguments, [argument for argument in arguments if argument != option]


def _with_study_sweep(overrides: Sequence[str], config_dir: Path | None) -> Sequence[str]:
    """The overrides with those that the chosen study sweeps over, checked.

    Raises:
        UserError: one of them does not exist.
    """
    from mbrl.cli.jobs import with_study_sweep
    from mbrl.compose import check_overrides

    extended = with_study_sweep(overrides, config_dir)
    if extended != list(overrides):
        check_overrides(extended, "train", config_dir)
    return extended


def _jobs_at_a_time(launcher: Any, overrides: Sequence[str], config_dir: Path | None) -> tuple[list[str], list[int]]:
    """How many jobs of a sweep launch=local runs at a time, as a setting, where it is left open, and the GPU of each.

    Says why to stderr. With another launcher the lists are empty.
    """
    from mbrl.cli.jobs import Machine, at_a_time, chooses_jobs, deal, gpus_in_turn
    from mbrl.compose import composed_jobs

    if not chooses_jobs(launcher):
        return [], gpus_in_turn(launcher)
    jobs = [config for _, config in composed_jobs(overrides, config_dir=config_dir)]
    number, reason, room = at_a_time(jobs, Machine.here())
    print(f"mbrl: {number} of {len(jobs)} jobs at a time ({reason}); hydra.launcher.n_jobs=N for N", file=sys.stderr)
    return [f"hydra.launcher.n_jobs={number}"], deal(room, number)


def _require_one_action(parsed: Any, estimates: bool) -> None:
    """Refuse, before a folder is claimed, what Hydra would refuse after it."""
    shown = [f"--{name.replace('_', '-')}" for name in SHOWN if getattr(parsed, name)]
    if shown and estimates:
        raise UserError(f"{ESTIMATE} and {shown[0]} exclude each other: give one of them")
    modes = [line for line in parsed.overrides if line.lstrip("+").split("=", 1)[0] == "hydra.mode"]
    if modes:
        raise UserError(f"{modes[0]} is not allowed: a sweep is what --multirun starts, and one run what it does not")
    if parsed.multirun and shown:
        raise UserError(f"--multirun and {shown[0]} exclude each other: {shown[0]} without --multirun shows one run")


def _require_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:  # bytes that this locale could not decode
            fix = "give it in UTF-8, with PYTHONUTF8=1 in the environment where the locale is another"
            raise UserError(f"the setting {argument!a} is no text in this locale: {fix}") from error


def run_once(config: Any, config_dir: Path | None = None) -> Path:
    """Train one run. Prints to stderr from which env step it starts, and a summary at its end.

    For a run that is finished, only the summary is printed, and nothing in its folder changes.

    Args:
        config: the configuration of the run.
        config_dir: a user's own folder of configurations.

    Returns:
        The run folder.
    """
    from mbrl.cli.summary import opening, summary
    from mbrl.start import train_unless_finished

    def say() -> None:  # the settings have been checked
        print(f"mbrl: {opening(Path(config.run_dir), config)}", file=sys.stderr)

    trained = train_unless_finished(config, say)
    folder = Path(config.run_dir)
    if not trained:
        print(f"mbrl: {folder} was finished before: nothing was done", file=sys.stderr)
    print(summary(folder, config_dir), file=sys.stderr)
    return folder


def print_help(command: str, config_dir: Path | None = None) -> None:
    """Print the purpose of the command, the choices of each group, and examples."""
    from mbrl.compose import group_key, groups

    _, purpose, chosen, examples = CONFIGURED[command]
    print(f"usage: mbrl {command} [setting=value ...]\n\n{purpose}.\n\nchoices:")
    typed = {
        f"{group_key(group, command)}=": members for group, members in groups(config_dir).items() if group in chosen
    }
    width = max(map(len, typed))
    for name, members in typed.items():
        print(f"  {name:<{width}} {', '.join(members)}")
    print(f"\n{examples}", end="")
