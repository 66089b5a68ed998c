"""The command line: `mbrl VERB …`. Verbs import what they need when they run, so that help comes at once."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from mbrl.cli.errors import RUN_ERROR, explain, root_cause
from mbrl.cli.verbs import add_verbs
from mbrl.errors import UserError

INTERRUPTED = 130
NOT_INSTALLED = "mbrl is not installed here: in the clone, give `make setup` or pip install -e ."
MODULES = {"train": "mbrl.training", "pretrain": "mbrl.pretraining.pretrain"}  # of the verbs with a configuration

TRAIN_HELP = """\
examples:
  mbrl train                                    the main job: mbpo_ivideogpt on one task, from pixels
  mbrl train agent=drqv2 env.task=door-lock seed=3
  mbrl train worldmodel@agent.world_model=ivideogpt_base
  mbrl train experiment=smoke                   the whole thing in miniature, to see that it works
  mbrl train --multirun seed=1,2,3              a sweep, one run after the other; again: what is missing
  mbrl train --multirun launch=local agent=sac,mbpo seed=0,1,2     as many side by side as there are cores
  mbrl train agent=drqv2 --cfg job              show every setting and stop

Given again, the same command goes on from the run's last checkpoint.
Settings are Hydra overrides: key=value, or a.b=value inside a group. `mbrl train --hydra-help` lists Hydra's
own options. With MBRL_TRACEBACK=1 in the environment, an error shows where it came from.
"""

PRETRAIN_HELP = """\
examples:
  mbrl pretrain 'data={runs/data/window-close: 1.0}' output=runs/pretrained/nano
  mbrl pretrain 'data={runs/data/mt50: 1.0, runs/demos/door-lock: 0.3}' worldmodel=ivideogpt_base output=runs/base
  mbrl pretrain 'data={runs/demos/hammer: 1.0}' worldmodel.pretrained=runs/base tokenizer.steps=0 output=runs/tuned
  torchrun --nproc-per-node 2 -m mbrl pretrain ...     on several GPUs or processes
  mbrl train worldmodel.pretrained=runs/pretrained/nano      start an agent from what was learned

Given again, the same command goes on from the last checkpoint. `mbrl pretrain --cfg job` shows every setting.
"""


def run_configured(verb: str, arguments: Sequence[str]) -> int:
    """Compose configs/VERB.yaml with the overrides, and call `run` of the verb's module with the result."""
    if {"-h", "--help"} & set(arguments):
        _print_help(verb)
        return 0
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from mbrl.cli.sweep import failures, prepare, run_job
    from mbrl.compose import CONFIG_MODULE, check_overrides

    parsed, unknown = get_args_parser().parse_known_args(arguments)
    if unknown:
        raise UserError(f"no option {unknown[0]!r}; settings are written key=value, see `mbrl {verb} --help`")
    if not (parsed.config_path or parsed.config_name or parsed.config_dir):
        check_overrides(parsed.overrides, verb)

    swept = parsed.multirun and verb == "train"
    folders = prepare(parsed.overrides, import_module(MODULES[verb]).check) if swept else []

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=verb)
    def job(config: DictConfig) -> None:
        settings, module = HydraConfig.get(), import_module(MODULES[verb])
        if settings.mode == RunMode.MULTIRUN and verb == "train":
            run_job(config, module.run, alone="BasicLauncher" in settings.launcher._target_)
            return
        try:
            folder = module.run(config)
            if folder is not None:  # of several processes one says where it is
                print(folder)
        except Exception as error:
            # told here, as Hydra puts a line of its own before it in main(); a sweep goes on to its next run
            code = None if settings.mode == RunMode.MULTIRUN else tell(error)
            if code is None:
                raise
            sys.exit(code)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself, and main() never sees them
    sys.argv = [f"mbrl {verb}", *arguments]
    job()
    return tell_failures(failures(folders), len(folders))


def _print_help(verb: str) -> None:
    from mbrl.compose import groups

    purpose, choices, examples = CONFIGURED[verb]
    print(f"usage: mbrl {verb} [setting=value ...]\n\n{purpose}.\n\nchoices:")
    for group, members in groups().items():
        if group in choices:
            print(f"  {group + '=':<13}{', '.join(members)}")
    print(f"\n{examples}", end="")


TRAIN_GROUPS = ("agent", "cloning", "env", "experiment", "launch", "planner", "policy", "worldmodel")
# the verbs with a configuration: purpose, the groups that can be chosen from, help
CONFIGURED = {
    "train": ("Train an agent; the results go to a folder under runs/", TRAIN_GROUPS, TRAIN_HELP),
    "pretrain": ("Train a world model on folders of episodes", ("worldmodel",), PRETRAIN_HELP),
}


class Version(argparse.Action):
    """Print the installed version; it is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from mbrl.run_folder.provenance import DISTRIBUTION

        try:
            print(f"mbrl {version(DISTRIBUTION)}")
        except PackageNotFoundError:
            raise UserError(NOT_INSTALLED) from None
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The verbs, their arguments and their help."""
    parser = argparse.ArgumentParser(
        prog="mbrl",
        description="Model-based reinforcement learning for robot manipulation.",
        epilog="`mbrl VERB --help` says more about each. Start with: mbrl train experiment=smoke",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    verbs.add_parser("train", help="train an agent, or go on where its run was broken off", add_help=False)
    verbs.add_parser("pretrain", help="train a world model on folders of episodes, or go on", add_help=False)
    add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one verb and leaves with its exit code.

    0 done, 1 failed on the way (a full disk, NaN in a loss), 2 asked for something wrong, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="mbrl: %(message)s", level=logging.WARNING)
    logging.getLogger("OpenGL").setLevel(logging.WARNING)  # Hydra shows what others log as information
    try:
        if arguments and arguments[0] in CONFIGURED:
            sys.exit(run_configured(arguments[0], arguments[1:]))
        options = build_parser().parse_args(arguments)
        sys.exit(options.run(options))
    except KeyboardInterrupt:
        ways_on = dict.fromkeys(CONFIGURED, "from the last checkpoint") | {"collect": "with what is missing"}
        verb = arguments[0] if arguments else ""
        go_on = f"; the same command goes on {ways_on[verb]}" if verb in ways_on else ""
        print(f"\nmbrl: interrupted{go_on}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        code = tell(error)
        if code is None:
            raise
        sys.exit(code)


def tell_failures(failed: Sequence[tuple[Path, str]], jobs: int) -> int:
    """Says which jobs of a sweep failed, one line each, and returns the exit code."""
    from mbrl.run_folder.state import FAILURE

    for folder, reason in failed:
        print(f"mbrl: error: {folder}: {reason} (see {folder / FAILURE})", file=sys.stderr)
    if failed:
        print(f"mbrl: {len(failed)} of {jobs} jobs failed; the same command repeats these alone", file=sys.stderr)
    return RUN_ERROR if failed else 0


def tell(error: Exception) -> int | None:
    """Prints one line for an error that a user can mend, and returns the exit code.

    None says that a traceback is due instead: the error is a defect of ours.
    """
    explained = None if os.environ.get("MBRL_TRACEBACK") else explain(root_cause(error))
    if explained is None:
        return None
    line, code = explained
    # it may quote a stranger's file, whose control characters the terminal would obey
    shown = "".join(letter if letter.isprintable() else "?" for letter in " ".join(line.split()))
    print(f"mbrl: error: {shown}", file=sys.stderr)
    return code
