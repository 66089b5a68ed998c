"""The command line: `mbrl VERB …`. Verbs import what they need when they run, so that help comes at once."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from mbrl.errors import RUN_ERROR, explain, root_cause

INTERRUPTED = 130

Verb = Callable[[argparse.Namespace], int]

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


def evaluate(options: argparse.Namespace) -> int:
    from mbrl.checkpoint import load_config
    from mbrl.evaluate import evaluate_run

    settings = load_config(options.folder).eval
    episodes = settings.episodes if options.episodes is None else options.episodes
    seed = settings.seed if options.seed is None else options.seed
    result = evaluate_run(options.folder, episodes=episodes, seed=seed, video=options.video)
    print_table([("measure", "value"), *((name, format_number(value)) for name, value in result.items())])
    return 0


def plot(options: argparse.Namespace) -> int:
    from mbrl.plot import plot as draw

    print(draw(options.runs, options.output))
    return 0


def bench(options: argparse.Namespace) -> int:
    from mbrl.bench import run_benchmarks

    results = run_benchmarks(options.names)
    widths = (48, 10, 14, 0)
    print_table([("benchmark", "value", "unit", "target")], widths)
    for rows in results:
        cells = [(row["name"], format_number(row["value"]), row["unit"], row["target"]) for row in rows]
        print_table([[str(cell) for cell in row] for row in cells], widths)
    return 0


def doctor(options: argparse.Namespace) -> int:
    from mbrl.doctor import checks

    broken = False
    for check in checks():
        print_table([(check.name, check.found)], least=(12, 0))
        if check.mend:
            print(f"{'':<12}  to mend it: {check.mend}")
        broken |= check.needed
    return RUN_ERROR if broken else 0


def demos(options: argparse.Namespace) -> int:
    from mbrl.demos import record

    folder = options.output or Path("runs") / "demos" / options.task
    record(options.task, options.episodes, noise=options.noise, seed=options.seed, output=folder)
    print(folder)
    return 0


def print_table(rows: Sequence[Sequence[str]], least: Sequence[int] | None = None) -> None:
    """Prints rows of text in columns, each at least as wide as `least` says."""
    least = least or [0] * len(rows[0])
    widths = [max(least[column], *(len(row[column]) for row in rows)) for column in range(len(least))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), flush=True)


def format_number(value: object) -> str:
    """Four significant digits where a float has more."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    _add_evaluate(verbs)
    _add_plot(verbs)
    _add_demos(verbs)

    _add_bench(verbs)
    _add_verb(verbs, "doctor", doctor, "say what this machine has and what mends it", ["mbrl doctor"])
    return parser


def _add_verb(verbs: Any, name: str, run: Verb, purpose: str, examples: list[str]) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run)
    return verb


def _add_evaluate(verbs: Any) -> None:
    examples = [
        "mbrl evaluate runs/drqv2/door-lock/seed1",
        "mbrl evaluate runs/drqv2/door-lock/seed1 --episodes 50 --video door.mp4",
    ]
    verb = _add_verb(
        verbs, "evaluate", evaluate, "play a run's checkpoint on a fixed list of goals", examples
    )
    as_set = "(default: as in the run's settings)"
    verb.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    verb.add_argument("--episodes", type=_positive, metavar="N", help=f"how many episodes {as_set}")
    verb.add_argument("--seed", type=int, metavar="S", help=f"which list of goals {as_set}")
    verb.add_argument("--video", type=Path, metavar="FILE", help="write the episodes to this .mp4 or .gif")


def _add_plot(verbs: Any) -> None:
    examples = [
        "mbrl plot runs/drqv2/door-lock/seed1",
        "mbrl plot runs --output curves.svg",
        "mbrl plot runs/drqv2 published/door-lock.csv",
    ]
    verb = _add_verb(verbs, "plot", plot, "draw learning curves from run folders and CSV files", examples)
    runs = "a run, a folder of runs, or a CSV of step,success,seed"
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=runs)
    output = ".png, .svg or .pdf; the drawn data go to a .csv beside it (default: curve.png)"
    verb.add_argument("--output", type=Path, default=Path("curve.png"), metavar="FILE", help=output)


def _add_demos(verbs: Any) -> None:
    examples = [
        "mbrl demos door-lock",
        "mbrl demos plate-slide --episodes 20 --noise 0.2 --output runs/demos/noisy",
    ]
    verb = _add_verb(verbs, "demos", demos, "record demonstrations of Meta-World's scripted policy", examples)
    verb.add_argument("task", metavar="TASK", help="one of the 50 tasks, such as door-lock")
    verb.add_argument(
        "--episodes", type=_positive, default=5, metavar="N", help="successful ones (default: 5)"
    )
    verb.add_argument("--noise", type=float, default=0.1, metavar="S", help="added to actions (default: 0.1)")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    verb.add_argument("--output", type=Path, metavar="FOLDER", help="(default: runs/demos/TASK)")


def _add_bench(verbs: Any) -> None:
    examples = ["mbrl bench", "mbrl bench imagination"]
    verb = _add_verb(verbs, "bench", bench, "run benchmarks and print their ratios", examples)
    verb.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


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
        go_on = "; the same command goes on from the last checkpoint" if arguments[:1] == ["train"] else ""
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
