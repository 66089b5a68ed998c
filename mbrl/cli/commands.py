"""A function for each command but `train` and `pretrain`; returns the exit code. Imports are delayed until it runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mbrl.cli.errors import RUN_ERROR
from mbrl.cli.tables import format_number, print_table
from mbrl.errors import UserError, one_line


def evaluate(options: argparse.Namespace) -> int:
    from mbrl.run import load
    from mbrl.run_folder.plain_json import finite_or_none

    if options.in_imagination is not None:
        return _rank_policies(options)
    alone = {"horizon": options.horizon, "output": options.output}
    if len(options.folders) > 1 or any(value is not None for value in alone.values()):
        given = [f"--{name}" for name, value in alone.items() if value is not None]
        what = given[0] if given else f"{len(options.folders)} RUNs"
        raise UserError(f"{what} needs --in-imagination MODEL, a world model in which policies are ranked")
    run = load(options.folders[0], options.config_dir, options.checkpoint)
    evaluation = run.evaluate(options.episodes, options.seed, options.video)
    means = evaluation.summary()
    if options.json:
        finite = {name: finite_or_none(value) for name, value in means.items()}
        print(json.dumps({"env_steps": run.env_steps, "episodes": len(evaluation.success), **finite}))
        return 0
    print_table([("measure", "value"), *((name, format_number(value)) for name, value in means.items())])
    return 0


def _rank_policies(options: argparse.Namespace) -> int:
    from mbrl.prediction.policies import rank_policies
    from mbrl.prediction.policy_report import as_json, lines, table, write_report
    from mbrl.results.plot import output_names

    if options.video is not None:
        raise UserError("--video films one run in the real environment: leave out --in-imagination")
    names = None if options.output is None else output_names(options.output)
    chosen = {name: getattr(options, name) for name in ("episodes", "seed", "horizon", "checkpoint", "config_dir")}
    ranking = rank_policies(options.folders, options.in_imagination, **chosen)
    pictures = [] if names is None else write_report(ranking, *names)
    if options.json:
        print(json.dumps(as_json(ranking)))
        return 0
    print_table(table(ranking))
    for line in ("", *lines(ranking), *map(str, pictures)):
        print(line)
    return 0


def predict(options: argparse.Namespace) -> int:
    from mbrl.prediction.predict import predict as run
    from mbrl.prediction.replays import Chosen
    from mbrl.prediction.tables import tables

    settings = vars(options).copy()
    for key in ("run", "model", "data", "output"):
        del settings[key]
    chosen = Chosen(**{key: settings.pop(key) for key in ("after", "episodes", "starts", "train")})
    # weights from the Hugging Face hub have no local folder
    trained = options.model.exists() or options.train is not None
    model_folder = options.model if trained else Path("runs") / options.model.name
    output = options.output or model_folder / "predict"
    rows, left_out = run(options.model, options.data, output, chosen=chosen, **settings)
    for table in tables(rows):
        print_table(table)
        print()
    for name, reason in left_out.items():
        print(one_line(f"left out: {name} ({reason})"))
    print(output)
    return 0


def plot(options: argparse.Namespace) -> int:
    from mbrl.results.plot import plot as draw

    pictures = draw(
        options.runs,
        options.output,
        options.reference,
        options.x,
        labels=options.label,
        agents=options.agents,
        baseline=options.baseline,
        metric=options.metric,
        on_progress=_progress,
    )
    for picture in pictures:
        print(picture)
    return 0


def report(options: argparse.Namespace) -> int:
    from mbrl.results.report import report as write

    print(write(options.folder, options.output, options.reference, _progress))
    return 0


def _progress(text: str) -> None:
    print(f"mbrl: {text}", file=sys.stderr)


def status(options: argparse.Namespace) -> int:
    from mbrl.results.status import status as show

    show(options.folder, options.watch)
    return 0


def compare(options: argparse.Namespace) -> int:
    from mbrl.results.compare import compare as differences

    rows = differences(options.one, options.other)
    print_table([("", "", str(options.one), str(options.other)), *rows])
    return 0


def bench(options: argparse.Namespace) -> int:
    from mbrl.bench import run_benchmarks
    from mbrl.device import pick_device

    if options.device is not None:
        pick_device(options.device)
    results = run_benchmarks(options.names, options.device)
    widths = (60, 10, 14, 0)
    print_table([("benchmark", "value", "unit", "target")], widths)
    for row in results:
        cells = (row["name"], format_number(row["value"]), row["unit"], row["target"])
        print_table([[str(cell) for cell in cells]], widths)
    return 0


def doctor(options: argparse.Namespace) -> int:
    from mbrl.cli.doctor import checks

    broken = False
    for check in checks():
        print_table([(check.name, check.found)], least=(12, 0))
        if check.fix:
            print(f"{'':<12}  to solve it: {check.fix}")
        broken |= check.needed
    return RUN_ERROR if broken else 0


def demos(options: argparse.Namespace) -> int:
    from mbrl.collecting.demonstrations import record

    folder = options.output or Path("runs") / "demos" / options.task
    record(
        options.task,
        options.episodes,
        noise=options.noise,
        seed=options.seed,
        output=folder,
        **_camera_settings(options),
    )
    print(folder)
    return 0


def _camera_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The camera settings that the command line gives."""
    values = {name: getattr(options, name) for name in ("resolution", "camera", "mirrored")}
    return {name: value for name, value in values.items() if value is not None}


def collect(options: argparse.Namespace) -> int:
    from mbrl.collecting.collect import DatasetProtocol, collect

    folder = options.output or Path("runs") / "data" / ("-".join(options.tasks) if len(options.tasks) < 4 else "mixed")
    rows = collect(
        options.tasks,
        options.episodes,
        policies=options.policy,
        protocol=DatasetProtocol(options.seed, options.noise, _camera_settings(options)),
        workers=options.workers,
        output=folder,
    )
    counts = [
        (row.task, row.policy, str(row.episodes), f"{row.successes / row.episodes:.2f}" if row.episodes else "-")
        for row in rows
    ]
    print_table([("task", "policy", "episodes", "success"), *counts])
    print(folder)
    return 0


def play(options: argparse.Namespace) -> int:
    try:
        from mbrl.play.run import run
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise UserError("mbrl play needs aiohttp: in the clone, pip install -e '.[play]'") from error
    run(
        options.model,
        host=options.host,
        port=options.port,
        task=options.task,
        data=options.data,
        config_dir=options.config_dir,
        checkpoint=options.checkpoint,
    )
    return 0
