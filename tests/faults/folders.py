"""Damaged and strange run folders, as `status`, `plot`, `report` and `compare` find them beside a good one."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.runs import Result, command, in_child

KIND = "damaged or strange run folder"
EVERY_SHORT, EVERY_DRAWN = 24, 7  # of the table's cases, and of those
SHOWN = {"status": "done", "compare": "result", "plot": "<svg", "report": "good · reach"}  # of the run left alone
LONG = "n" * 100_000
DEEP = "[" * 900 + "]" * 900
GOOD = "good"  # the agent of the run that is left alone
Damage = Callable[[Path], object]  # given the folder of the run that it damages


def write_run(folder: Path, agent: str, *, task: str = "reach") -> Path:
    """A finished run, as far as these commands look."""
    (folder / "checkpoints" / "checkpoint-000000002000").mkdir(parents=True)
    settings = {"agent": {"name": agent}, "env": {"task": task}, "seed": 0, "total_env_steps": 2000}
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    (folder / "eval.csv").write_text("step,success,seed\n1000,0.5,0\n2000,1,0\n")
    rows = [{"env_steps": step, "wall_time": step / 10, "world_model/loss": 1.0} for step in (1000, 2000)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "starts.jsonl").write_text(json.dumps({"command": "mbrl train", "commit": "abc"}) + "\n")
    (folder / "curve.png").touch()
    return folder


def text(name: str, content: str | bytes) -> Damage:
    return lambda run: (run / name).write_bytes(content.encode() if isinstance(content, str) else content)


def added(name: str, content: str) -> Damage:
    """Lines at the end of a file."""

    def damage(run: Path) -> None:
        with (run / name).open("a") as file:
            file.write(content)

    return damage


def setting(**values: object) -> Damage:
    """Settings of config.yaml replaced; a dot is written as two underscores."""

    def damage(run: Path) -> None:
        settings = json.loads((run / "config.yaml").read_text())
        for key, value in values.items():
            *groups, name = key.split("__")
            place = settings
            for group in groups:
                place = place[group]
            place[name] = value
        (run / "config.yaml").write_text(json.dumps(settings))

    return damage


def folder_instead(name: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name / "inner").mkdir(parents=True)

    return damage


def halved(name: str) -> Damage:
    return lambda run: os.truncate(run / name, (run / name).stat().st_size // 2)


def moved(name: bytes) -> Damage:
    """The run's folder under another name."""
    return lambda run: run.rename(run.with_name(os.fsdecode(name)))


def _linked(run: Path) -> None:
    """The run lies elsewhere, and links to it and back are in its place."""
    elsewhere = run.parent.parent / "elsewhere"
    shutil.move(run, elsewhere)
    run.symlink_to(elsewhere)
    (run.parent / "again").symlink_to(run.parent)


def _bomb(run: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (run / "config.yaml").write_text("\n".join(lines))


def _large_video(run: Path) -> None:
    (run / "imagination.mp4").touch()
    os.truncate(run / "imagination.mp4", 2**31)


def _many_metrics(run: Path) -> None:
    row = {"env_steps": 2000, "wall_time": 1, **{f"world_model/{n}": n for n in range(3000)}}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")


NAMES = {
    "of 100,000 letters": LONG, "with a dollar": "a$x_{$b", "with two dollars": "$\\frac$",
    "with markup": "[bold]x[/nothing]",
    "that begins with _": "_hidden", "of two lines": "a\nb", "with an escape": "\x1b[31mred", "half a letter": "\ud800",
    "of nothing": "", "of another script": "智能体", "with HTML": "<script>alert(1)</script>",
    "with braces": "{{ 7 * 7 }}",
    "that is a number": 7, "that is a list": ["a"], "that is null": None,
}  # fmt: skip
ROWS = {
    "that is no object": "7\n[1]\nnull\n\"x\"\n", "nested deep": DEEP + "\n", "nested very deep": "[" * 100_000 + "\n",
    "of bytes": "\x00\xff\n", "with a mark": "\ufeff{}\n",
    "with half a letter": '{"command": "\\ud800", "env_steps": 3}\n',
    "with a huge number": '{"env_steps": 1' + "0" * 400 + ', "wall_time": 1, "world_model/loss": 1}\n',
    "with a huger number": '{"env_steps": 1' + "0" * 5000 + ', "wall_time": 1}\n',
    "with large floats": '{"env_steps": 1e308, "wall_time": 1e308, "world_model/loss": 1e308}\n',
    "with NaN": '{"env_steps": NaN, "wall_time": Infinity, "world_model/loss": NaN}\n',
    "with text": '{"env_steps": "7", "wall_time": "x", "world_model/loss": "x"}\n',
    "with lists": '{"env_steps": [7], "wall_time": {}, "world_model/loss": [1], "command": [[1]]}\n',
    "with a negative count": '{"env_steps": -7, "wall_time": -1, "world_model/loss": 1}\n',
    "with a value deep": '{"command": "x", "env_steps": 5, "wall_time": 1, "hardware": ' + DEEP + "}\n",
    "with a long key": json.dumps({"env_steps": 2000, "wall_time": 9, f"world_model/{LONG}": 1, LONG: 1}) + "\n",
}  # fmt: skip


def cases() -> dict[str, Damage]:
    """What damages the run, by what is strange about it."""
    table: dict[str, Damage] = {f"agent's name {name}": setting(agent__name=value) for name, value in NAMES.items()}
    table |= {f"task's name {name}": setting(env__task=value) for name, value in NAMES.items()}
    for file in ("metrics.jsonl", "starts.jsonl"):
        table |= {f"{file}, a row {name}": added(file, row) for name, row in ROWS.items()}
    for value in (0, -1, "text", None, 1e30, 0.5, [1], float("inf"), 10**30, True):
        table[f"total_env_steps {value}"] = setting(total_env_steps=value)
    for file in ("config.yaml", "eval.csv", "metrics.jsonl", "starts.jsonl"):
        table |= {
            f"{file} cut in half": halved(file),
            f"{file} emptied": text(file, ""), f"{file} zeroed": text(file, bytes(99)),
            f"{file} of bytes": text(file, bytes(range(256))), f"{file} a folder": folder_instead(file),
            f"{file} in UTF-16": text(file, "step,success,seed\n1,1,1\n".encode("utf-16")),
            f"{file} removed": lambda run, file=file: (run / file).unlink(),
        }  # fmt: skip
    rows = "step,success,seed\n"
    for name, content in {
        "with a byte-order mark": "\ufeff" + rows + "1000,0.5,0\n",
        "of rounded rates": rows + "1000,1.0000000000000002,0\n",
        "of rates below 0": rows + "1000,-1e-17,0\n", "of percent": rows + "1000,72,0\n",
        "of NaN": rows + "1000,nan,0\n",
        "of steps that are none": rows + "-5,1,0\n1e300,1,0\ninf,1,0\n",
        "with a long field": rows + f"1000,1,{'9' * 200_000}\n",
        "with NUL": rows + "1000,\x001,0\n", "without a head": "1000,1,0\n", "with a head alone": rows,
        "with too few columns": rows + "1000\n", "with too many": rows + "1000,1,0,x,y\n",
        "with quotes": rows + '"1000,1,0\n',
    }.items():  # fmt: skip
        table[f"eval.csv {name}"] = text("eval.csv", content)
    for name, value in NAMES.items():
        table[f"subtask's name {name}"] = text("eval_tasks.csv", f"step,success,seed,task\n1000,1,0,{value}\n".encode(
            errors="replace"))  # fmt: skip
    for name in (
        b"[bold]x",
        b"[link=x]y",
        b"x\\",
        b"$x$",
        b"line\nbreak",
        b"\xff\xfe",
        b"_x",
        b"a b=c,{d}",
        b"\x1b[31m",
    ):
        table[f"folder {name!r}"] = moved(name)
    return table | {
        "a YAML bomb": _bomb,
        "YAML tags": added("config.yaml", "\nx: !!python/object/apply:os.getcwd []\n"),
        "YAML nested deep": text("config.yaml", "a: " + DEEP),
        "YAML with a mark": lambda run: text("config.yaml", "\ufeff" + (run / "config.yaml").read_text())(run),
        "a megabyte of YAML": text("config.yaml", "".join(f"a{n}: 1\n" for n in range(90_000))),
        "YAML with a long key": setting(agent={"name": "x", LONG: 1}),
        "YAML with interpolations": setting(agent={"name": "${oc.env:HOME}"}),
        "another config.yaml above": lambda run: text("config.yaml", "name: project\n")(run.parent),
        "a broken config.yaml above": lambda run: text("config.yaml", "{")(run.parent),
        "checkpoint-abc": lambda run: (run / "checkpoints" / "checkpoint-abc").mkdir(),
        "a checkpoint of many digits": lambda run: (run / "checkpoints" / f"checkpoint-{'9' * 40}").mkdir(),
        "a checkpoint that is a file": lambda run: (run / "checkpoints" / "checkpoint-000000009000").touch(),
        "checkpoints that are a file": lambda run: (shutil.rmtree(run / "checkpoints"), text("checkpoints", "")(run)),
        "linked": _linked,
        "a link to nothing": lambda run: (run / "eval.csv").unlink() or (run / "eval.csv").symlink_to(run / "nothing"),
        "a pipe": lambda run: os.mkfifo(run / "pipe.mp4"),
        "a video that is a folder": lambda run: (run / "x.mp4").mkdir(),
        "a video of two gigabytes": _large_video,
        "3000 metrics": _many_metrics,
    }


def tried(folder: Path, *, short: bool) -> Iterator[Result]:
    """Each case of the table, or some of them: with every verb, or mostly with those that draw nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    table = cases()
    for number, name in enumerate(list(table)[:: EVERY_SHORT if short else 1]):
        runs = folder / "runs"
        write_run(runs / "a", GOOD)
        table[name](write_run(runs / "b", "other"))
        drawing = ["plot", "report"] if "eval" in name or "name" in name else ["report"]
        for verb in ["status", "compare", *(drawing if not short or number % EVERY_DRAWN == 0 else ())]:
            yield _try(folder, runs, verb, name)
        shutil.rmtree(os.fsencode(folder))
        folder.mkdir()


def _try(folder: Path, runs: Path, verb: str, name: str) -> Result:
    output = {"plot": folder / "plot.svg", "report": folder / "page.html"}.get(verb)
    arguments = {"status": [runs], "compare": [runs / "a", runs / "b"]}.get(verb, [runs, "--output", output])
    ended = in_child(command(verb, *arguments), folder / "log.txt")
    if verb == "compare" and ended.is_one_clear_line:
        return Result(KIND, f"{verb}: {name}", "one line", ended.error_lines[0])
    shown = ended.errors if output is None else output.read_text(errors="replace") if output.exists() else ""
    if ended.code == 0 and SHOWN[verb] in shown:
        return Result(KIND, f"{verb}: {name}", "survived")
    return Result(KIND, f"{verb}: {name}", "failed", f"exit code {ended.code}: {ended.errors[-900:]}")
