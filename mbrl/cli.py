"""The command line: `mbrl VERB …`. Verbs import what they need when they run, so that help comes at once."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from mbrl.errors import explain, root_cause
from mbrl.verbs import add_verbs

INTERRUPTED = 130

TRAIN_HELP = """\
examples:
  mbrl train                                    the main job: mbpo_ivideogpt on one task, from pixels
  mbrl train agent=drqv2 env.task=door-lock seed=3
  mbrl train worldmodel@agent.world_model=ivideogpt_base
  mbrl train experiment=smoke                   the whole thing in miniature, to see that it works
  mbrl train --multirun seed=1,2,3              one run after the other
  mbrl train agent=drqv2 --cfg job              show every setting and stop

Given again, the same command goes on from the run's last checkpoint.
Settings are Hydra overrides: key=value, or a.b=value inside a group. `mbrl train --hydra-help` lists Hydra's
own options. With MBRL_TRACEBACK=1 in the environment, an error shows where it came from.
"""


def train(arguments: Sequence[str]) -> int:
    """Hands the overrides to Hydra and the composed configuration to the training loop."""
    if {"-h", "--help"} & set(arguments):
        _print_train_help()
        return 0
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from mbrl.overrides import CONFIG_MODULE, ROOT_CONFIG, check_overrides

    parsed, unknown = get_args_parser().parse_known_args(arguments)
    if unknown:
        raise ValueError(f"no option {unknown[0]!r}; settings are written key=value, see `mbrl train --help`")
    if not (parsed.config_path or parsed.config_name or parsed.config_dir):
        check_overrides(parsed.overrides)

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=ROOT_CONFIG)
    def job(config: DictConfig) -> None:
        from mbrl.train import run

        try:
            print(run(config))
        except Exception as error:
            # told here, as Hydra puts a line of its own before it in main(); a sweep goes on to its next run
            code = None if HydraConfig.get().mode == RunMode.MULTIRUN else tell(error)
            if code is None:
                raise
            sys.exit(code)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself, and main() never sees them
    sys.argv = ["mbrl train", *arguments]
    job()
    return 0


def _print_train_help() -> None:
    from mbrl.overrides import groups

    print("usage: mbrl train [setting=value ...]\n")
    print("Train an agent; the results go to a folder under runs/.\n\nchoices:")
    for group, members in groups().items():
        print(f"  {group + '=':<13}{', '.join(members)}")
    print(f"\n{TRAIN_HELP}", end="")


def build_parser() -> argparse.ArgumentParser:
    """The verbs, their arguments and their help."""
    parser = argparse.ArgumentParser(
        prog="mbrl",
        description="Model-based reinforcement learning for robot manipulation.",
        epilog="`mbrl VERB --help` says more about each. Start with: mbrl train experiment=smoke",
    )
    parser.add_argument("--version", action="version", version=f"mbrl {version('mbrl')}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    verbs.add_parser("train", help="train an agent, or go on where its run was broken off", add_help=False)
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
        if arguments[:1] == ["train"]:
            sys.exit(train(arguments[1:]))
        options = build_parser().parse_args(arguments)
        sys.exit(options.run(options))
    except KeyboardInterrupt:
        ways_on = {"train": "from the last checkpoint", "collect": "with what is missing"}
        verb = arguments[0] if arguments else ""
        go_on = f"; the same command goes on {ways_on[verb]}" if verb in ways_on else ""
        print(f"\nmbrl: interrupted{go_on}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        code = tell(error)
        if code is None:
            raise
        sys.exit(code)


def tell(error: Exception) -> int | None:
    """Prints one line for an error that a user can mend, and returns the exit code.

    None says that a traceback is due instead: the error is a defect of ours.
    """
    explained = None if os.environ.get("MBRL_TRACEBACK") else explain(root_cause(error))
    if explained is None:
        return None
    line, code = explained
    print(f"mbrl: error: {' '.join(line.split())}", file=sys.stderr)
    return code
