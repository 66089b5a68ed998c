"""Tiny runs in processes of their own, which a fault can be put into, and what they are compared by."""

import gc
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mbrl.cli.main import main
from tests.command import IMPORTED
from tests.faults import operations
from tests.run_folders import rows, weights

for _name in IMPORTED:  # once, here: a command that is forked imports nothing more
    import_module(_name)
gc.freeze()  # nor looks through what was imported

LONGEST = 120  # seconds that a command may take before it counts as hanging
# one that sees states, one that keeps frames, and one that has every part
AGENTS = ("sac", "drqv2", "mbpo_ivideogpt")
SHORT_AGENTS = ("drqv2",)
RUN = [
    "env=toy", "experiment=smoke", "total_env_steps=72", "checkpoint_every=24", "eval.every=36", "video=false",
    "env.episode_length=12", "collect.frames_per_batch=6", "device=cpu",
    "agent.updates_per_step=0.25",
]  # fmt: skip


class Result(NamedTuple):
    """What came of one fault: outcome is "survived", "one line" or "failed"."""

    kind: str
    name: str
    outcome: str
    details: str = ""


class Ended(NamedTuple):
    """How a process ended: its exit code (minus the signal that killed it), and what it wrote to stderr."""

    code: int
    errors: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith("mbrl: error:")]

    @property
    def is_one_clear_line(self) -> bool:
        return self.code in (1, 2) and len(self.error_lines) == 1 and "Traceback" not in self.errors


def in_child(work: Callable[[], object], log: Path) -> Ended:
    """Do the work in a process that is forked from this one, which has imported all that it needs."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 99
        try:
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - whatever it is, it is what came of the fault
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return Ended(_exit_code(process), log.read_text(errors="replace"))


def _exit_code(process: int) -> int:
    """Waits for the process to end, and ends it where it hangs."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def command(verb: str, *arguments: str | Path, before: Callable[[], object] = lambda: None) -> Callable[[], object]:
    """The command line's work, for `in_child`."""

    def work() -> None:
        before()
        main([verb, *map(str, arguments)])

    return work


def _write_at_exit(file: Path, values: list[str]) -> None:
    """Write the values, as they are then, before the process leaves by `os._exit`, as `in_child` has it."""
    leave = os._exit

    def last(code: int) -> None:
        file.write_text(json.dumps(values))
        leave(code)

    os._exit = last  # type: ignore[assignment]


class Whole:
    """A run that was left alone, and what it is compared by.

    Attributes:
        operations: The names of all its file operations, in their order.
    """

    def __init__(self, agent: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.agent, self.folder, self._count = agent, folder, 0
        self.run, file = folder / "whole", folder / "operations.json"
        ended = self.train(self.run, lambda: _write_at_exit(file, operations.install(None)))
        assert ended.code == 0, ended.errors
        self.operations: list[str] = json.loads(file.read_text())
        self.rows, self.weights = rows(self.run), weights(self.run)

    def train(self, run: Path, before: Callable[[], object] = lambda: None) -> Ended:
        return in_child(
            command("train", *RUN, f"agent={self.agent}", f"run_dir={run}", before=before), self.folder / "log.txt"
        )

    def new_folder(self, copy_of: Path | None = None) -> Path:
        self._count += 1
        run = self.folder / f"run{self._count}"
        if copy_of is not None:
            shutil.copytree(copy_of, run)
        return run

    def differences(self, run: Path) -> str:
        """What differs from the run that was left alone; "" where nothing does."""
        found = [] if rows(run) == self.rows else ["metrics.jsonl"]
        if (run / "eval.csv").read_text() != (self.run / "eval.csv").read_text():
            found.append("eval.csv")
        ours = weights(run)
        found += sorted(name for name in ours.keys() | self.weights.keys() if ours.get(name) != self.weights.get(name))
        hidden = [path.name for path in run.rglob(".*") if path.name != ".lock"]
        return ", ".join(found + [f"left over: {name}" for name in hidden])

    def judge(self, kind: str, name: str, run: Path, *, resumed: bool = True) -> Result:
        """Train `run` to its end, if it is to be resumed, and compare it."""
        ended = self.train(run) if resumed else None
        if ended is not None and ended.code != 0:
            result = Result(kind, name, "failed", f"exit code {ended.code}: {ended.errors[-500:]}")
        else:
            difference = self.differences(run)
            result = Result(kind, name, "failed" if difference else "survived", difference)
        shutil.rmtree(run)
        return result


def chosen(count: int, every: int, short: int | None) -> Sequence[int]:
    """Each `every`-th of `count` numbers, or the middles of `short` equal parts of them."""
    if short is None or count <= short:
        return range(0, count, every)
    return [count * (2 * number + 1) // (2 * short) for number in range(short)]
