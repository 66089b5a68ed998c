"""Arguments and help of each command except `train` and `pretrain`, whose arguments Hydra parses."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbrl.cli import commands as run
from mbrl.cli.options import Episodes, Many, Port, Seconds, Seed, Videos, option
from policies.ranges import Horizon as Frames
from policies.ranges import PositiveCount, Resolution, Std, Workers

Command = Callable[[argparse.Namespace], int]


def add_commands(commands: Any) -> None:
    """Add every command to argparse's sub-parsers."""
    _add_evaluate(commands)
    _add_predict(commands)
    _add_play(commands)
    _add_plot(commands)
    _add_report(commands)
    _add_status(commands)
    _add_compare(commands)
    _add_demos(commands)
    _add_collect(commands)
    _add_bench(commands)
    _add(commands, "doctor", run.doctor, "check this machine, with one command for each problem", ["mbrl doctor"])


def _add(commands: Any, name: str, function: Command, purpose: str, examples: list[str]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=function)
    return parser


def _add_evaluate(commands: Any) -> None:
    examples = [
        "mbrl evaluate runs/drqv2/door-lock/seed1",
        "mbrl evaluate runs/drqv2/door-lock/seed1 --episodes 50 --video door.mp4",
        "mbrl evaluate runs/drqv2/door-lock/seed1 --checkpoint 8000 --json",
        "mbrl evaluate runs/drqv2/door-lock/seed* --in-imagination runs/mbpo_ivideogpt/door-lock/seed1",
        "                                  ranks all checkpoints of these runs in a world model, beside the real ranks",
    ]
    purpose = "play a run's checkpoint on a fixed list of goals, or rank checkpoints in a world model"
    parser = _add(commands, "evaluate", run.evaluate, purpose, examples)
    as_trained = "(default: as in the run's own evaluations)"
    runs = "the run's folder; several with --in-imagination"
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help=runs)
    parser.add_argument("--episodes", type=option(Many), metavar="N", help=f"number of episodes {as_trained}")
    parser.add_argument("--seed", type=option(Seed), metavar="S", help=f"seed of the list of goals {as_trained}")
    newest = "env steps of the checkpoint to load (default: the newest; with --in-imagination all that a RUN holds)"
    parser.add_argument("--checkpoint", type=option(PositiveCount), metavar="ENV_STEPS", help=newest)
    parser.add_argument("--video", type=Path, metavar="FILE", help="write the first four episodes to this .mp4 or .gif")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    imagined = parser.add_argument_group("options for ranking in a world model")
    model = "play the same episodes in this world model too: a run's folder, or weights (a folder or a Hugging Face id)"
    imagined.add_argument("--in-imagination", type=Path, metavar="MODEL", help=model)
    horizon = "steps to imagine (default: the rest of an episode after the real frames that MODEL starts from)"
    imagined.add_argument("--horizon", type=option(Frames), metavar="H", help=horizon)
    output = "draw a .png, .svg or .pdf, or .png and .svg of this name; the table is written beside it as .csv"
    imagined.add_argument("--output", type=Path, metavar="FILE", help=output)
    _add_config_dir(parser)


def _add_config_dir(parser: argparse.ArgumentParser) -> None:
    purpose = "your own configurations: the run may use the classes that they name, besides this project's"
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help=purpose)


def _add_predict(commands: Any) -> None:
    examples = [
        "mbrl predict runs/mbpo_ivideogpt/door-lock/seed1 runs/demos/door-lock",
        "mbrl predict RUN DATA --no-probe                without the gripper probes",
        "mbrl predict RUN DATA --samples 20 --lpips vgg16.pth lpips.pth --fvd i3d_pretrained_400.pt",
        "mbrl predict RUN RUN                            its model before the newest checkpoint, on the episodes since",
        "mbrl predict MODEL RUN --after 30 --train agent=mbpo_ivideogpt agent.model_updates_first=1900",
        "                                                train on the first 30 episodes of RUN, measure on the next 10",
    ]
    purpose = "measure a world model on real episodes: videos, error along the horizon, a table"
    parser = _add(commands, "predict", run.predict, purpose, examples)
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's folder, or weights: a folder or a Hugging Face id"
    )
    data = "a folder of episodes, not used in training; or a run's folder, whose replay is read"
    parser.add_argument("data", type=Path, metavar="DATA", help=data)
    _add_replay(parser)
    parser.add_argument(
        "--horizon", type=option(Frames), metavar="H", help="steps to imagine (default: the model's longest)"
    )
    parser.add_argument(
        "--segments", type=option(Many), default=64, metavar="M", help="number of segments to measure (default: 64)"
    )
    samples = "rollouts of each segment; scores are of their mean and of the best (default: 1)"
    parser.add_argument("--samples", type=option(Many), default=1, metavar="K", help=samples)
    parser.add_argument(
        "--batch-size", type=option(Many), default=16, metavar="B", help="rollouts in parallel (default: 16)"
    )
    parser.add_argument(
        "--videos", type=option(Videos), default=4, metavar="N", help="number of videos to write (default: 4)"
    )
    parser.add_argument(
        "--seed", type=option(Seed), default=0, metavar="S", help="seed of the segments and of sampling (default: 0)"
    )
    lpips = "weights of torchvision's VGG16 and of the lpips package: adds LPIPS"
    parser.add_argument("--lpips", type=Path, nargs="+", default=(), metavar="FILE", help=lpips)
    parser.add_argument("--fvd", type=Path, metavar="FILE", help="weights of I3D (Kinetics-400): adds FVD")
    no_probe = "do not measure the gripper position: fitting its probes takes most of the time of a small model"
    parser.add_argument("--no-probe", dest="probe", action="store_false", help=no_probe)
    goal = "the weights are conditioned on a goal frame; files of published weights do not say so"
    parser.add_argument("--goal", action="store_true", default=None, help=goal)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for the results (default: MODEL/predict)")
    _add_config_dir(parser)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    replay = parser.add_argument_group(
        "options for the replay of a run as DATA; plans are ranked with env.snapshots=true"
    )
    after = "leave out the first N episodes (default: those that MODEL was trained on, or all but the newest)"
    replay.add_argument("--after", type=option(Episodes), metavar="N", help=after)
    episodes = "number of episodes to measure on (default: 10)"
    replay.add_argument("--episodes", type=option(Many), metavar="E", help=episodes)
    starts = "states that plans are ranked from (default: 24)"
    replay.add_argument("--starts", type=option(Many), metavar="S", help=starts)
    train = "train a model on the first N episodes, with settings of `mbrl train`; it is kept in the folder MODEL"
    replay.add_argument("--train", nargs="*", metavar="SETTING", help=train)


def _add_play(commands: Any) -> None:
    examples = [
        "mbrl play runs/reference/pretrained/nano --task door-lock      weights that the clone holds",
        "mbrl play runs/mbpo_ivideogpt/window-close/seed0",
        "mbrl play runs/mbpo_ivideogpt/window-close/seed0 --task hammer      a task that the model never saw",
        "mbrl play runs/pretrained/nano --task door-lock --data runs/demos/door-lock      of your own",
        "on another machine: ssh -L 8420:localhost:8420 MACHINE, and open http://localhost:8420 here",
    ]
    purpose = "steer a world model and the real simulator side by side, on a page in the browser"
    parser = _add(commands, "play", run.play, purpose, examples)
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's folder, or weights: a folder or a Hugging Face id"
    )
    parser.add_argument("--task", metavar="TASK", help="Meta-World task (default: that of the run; weights name none)")
    data = "a folder of recorded episodes to start from, beside the run's own replay"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data)
    newest = "env steps of the checkpoint to load (default: the newest)"
    parser.add_argument("--checkpoint", type=option(PositiveCount), metavar="ENV_STEPS", help=newest)
    host = "address to listen on; any but the default lets others in, who may then watch and steer (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host)
    parser.add_argument(
        "--port", type=option(Port), default=8420, metavar="PORT", help="port to listen on (default: 8420)"
    )
    _add_config_dir(parser)


def _add_plot(commands: Any) -> None:
    examples = [
        "mbrl plot runs/drqv2/door-lock/seed1",
        "mbrl plot runs --output figures/study           writes study and study-over-tasks, .png, .svg and .csv",
        "mbrl plot runs --agents sac mbpo --baseline sac",
        "mbrl plot runs/a runs/b --label 'horizon 5' --label 'horizon 10'",
        "mbrl plot runs --x wall_time --output hours.pdf",
        "mbrl plot runs/drqv2 --reference published      with the curves in published/AGENT/TASK.csv",
    ]
    parser = _add(commands, "plot", run.plot, "draw learning curves, and their aggregates over tasks", examples)
    runs = "a run, a folder of runs, or a CSV file with columns step,success,seed"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=runs)
    label = "name of the curves of a RUN; given once for each RUN, in their order (default: agent and settings)"
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help=label)
    agents = "draw these agents only; NAME also stands for every 'NAME [settings]' (default: all)"
    parser.add_argument("--agents", nargs="+", default=[], metavar="NAME", help=agents)
    baseline = "agent that the others are compared with over tasks (default: the weakest that succeeds at all)"
    parser.add_argument("--baseline", metavar="NAME", help=baseline)
    reference = "folder AGENT/TASK.csv of published curves, drawn up to the end of the runs"
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help=reference)
    metric = "success or return (default: success, or return where no run has reported a success, as with env=dmc)"
    parser.add_argument("--metric", metavar="METRIC", help=metric)
    x = "env_steps, gradient_steps or wall_time (default: env_steps)"
    parser.add_argument("--x", default="env_steps", metavar="AXIS", help=x)
    output = "a .png, .svg or .pdf, or a name for .png and .svg (default: curves, in the folder that holds all RUNs)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)


def _add_report(commands: Any) -> None:
    examples = ["mbrl report runs", "mbrl report runs --reference published --output study.html"]
    parser = _add(commands, "report", run.report, "write one self-contained HTML page about a folder of runs", examples)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of runs")
    reference = "folder AGENT/TASK.csv of published curves, drawn with the learning curves"
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help=reference)
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: FOLDER/report.html)")


def _add_status(commands: Any) -> None:
    examples = ["mbrl status runs", "mbrl status runs/sac --watch"]
    parser = _add(commands, "status", run.status, "show how far the runs in a folder are", examples)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of runs at any depth, or a run's folder")
    watch = "refresh every SECONDS (10 without a number) until all runs have ended"
    parser.add_argument("--watch", type=option(Seconds), nargs="?", const=10.0, metavar="SECONDS", help=watch)


def _add_compare(commands: Any) -> None:
    examples = ["mbrl compare runs/sac/hammer/seed0 runs/mbpo/hammer/seed0"]
    parser = _add(
        commands,
        "compare",
        run.compare,
        "show what differs between two runs: settings, code, packages, machine, results",
        examples,
    )
    for name in ("one", "other"):
        parser.add_argument(name, type=Path, metavar="RUN", help="a run's folder")


def _add_demos(commands: Any) -> None:
    examples = [
        "mbrl demos door-lock",
        "mbrl demos plate-slide --episodes 20 --noise 0.2 --output runs/demos/noisy",
        "mbrl demos plate-slide --mirrored --output runs/demos/mirrored    for mbrl train protocol=ivideogpt",
    ]
    parser = _add(commands, "demos", run.demos, "record demonstrations of Meta-World's scripted policy", examples)
    parser.add_argument("task", metavar="TASK", help="one of the 50 tasks, such as door-lock")
    parser.add_argument(
        "--episodes",
        type=option(Many),
        default=5,
        metavar="N",
        help="number of successful episodes to record (default: 5)",
    )
    parser.add_argument(
        "--noise",
        type=option(Std),
        default=0.1,
        metavar="S",
        help="standard deviation of the noise on actions (default: 0.1)",
    )
    parser.add_argument(
        "--seed", type=option(Seed), default=0, metavar="S", help="seed of the goals and the noise (default: 0)"
    )
    _add_camera(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for the episodes (default: runs/demos/TASK)"
    )


def _add_camera(parser: argparse.ArgumentParser) -> None:
    as_set = "(default: as in configs/env/metaworld.yaml)"
    resolution = f"width and height of the frames, in pixels {as_set}"
    parser.add_argument("--resolution", type=option(Resolution), metavar="R", help=resolution)
    parser.add_argument("--camera", metavar="NAME", help=f"Meta-World's camera: corner, corner2, ... {as_set}")
    mirrored = f"frames mirrored left to right, which protocol=ivideogpt needs {as_set}"
    parser.add_argument("--mirrored", action="store_true", default=None, help=mirrored)


def _add_collect(commands: Any) -> None:
    examples = [
        "mbrl collect window-close plate-slide --episodes 50 --workers 2",
        "mbrl collect all --episodes 30 --policy scripted noisy random --output runs/data/mt50",
    ]
    parser = _add(
        commands, "collect", run.collect, "record a data set of many tasks; the same command resumes", examples
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="names of tasks, such as door-lock; all: the 50 tasks")
    episodes = "number for each task, divided evenly among the policies (default: 10)"
    parser.add_argument("--episodes", type=option(Many), default=10, metavar="N", help=episodes)
    policies = "scripted, noisy (scripted with noise) or random; one or more (default: scripted)"
    parser.add_argument("--policy", nargs="+", default=["scripted"], metavar="NAME", help=policies)
    parser.add_argument(
        "--noise",
        type=option(Std),
        default=0.3,
        metavar="S",
        help="standard deviation of the noise of noisy (default: 0.3)",
    )
    parser.add_argument(
        "--workers", type=option(Workers), default=1, metavar="W", help="number of processes (default: 1)"
    )
    parser.add_argument(
        "--seed", type=option(Seed), default=0, metavar="S", help="seed of the goals and the noise (default: 0)"
    )
    _add_camera(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for the episodes (default: runs/data/TASK, or runs/data/mixed)",
    )


def _add_bench(commands: Any) -> None:
    examples = ["mbrl bench", "mbrl bench imagination", "mbrl bench --device cuda"]
    parser = _add(commands, "bench", run.bench, "run benchmarks and print their ratios", examples)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of benchmarks (default: all)")
    parser.add_argument("--device", help="measure the pieces of the suite on this GPU, e.g. cuda or cuda:1")
