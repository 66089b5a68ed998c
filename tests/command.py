"""The command in a process of its own, forked from a server that has imported everything once (6 s of CPU each time).

The process can be killed, and shares nothing with the tests: it starts with the modules of the project imported, in the
state in which `python -m mbrl` has them. What is tested about that start itself needs `subprocess`.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import tests.compiled_once  # noqa: F401
import tests.parsed_once  # noqa: F401 - both in each command too

IMPORTED = [
    "mbrl.cli.main", "mbrl.cli.sweep", "mbrl.cli.jobs", "mbrl.start",
    "mbrl.training", "mbrl.pretraining.pretrain",
    "mbrl.envs.metaworld", "mbrl.envs.toy", "mbrl.run_folder.tensorboard", "worldmodel.ivideogpt.model",
    "policies.drqv2", "policies.sac", "metaworld", "mbrl.results.plot", "scipy", "pandas", "rich.table",
    "tests.compiled_beforehand",
]  # fmt: skip
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(IMPORTED)


class Done(NamedTuple):
    """How the command ended: its exit code (minus the signal that killed it) and its output."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """`mbrl ARGUMENTS` in a process that has just been started.

    Args:
        arguments: the command and what follows it.
        environment: variables to set beside those of the tests.
        program: the module with another `main`, which is called with the arguments.
    """

    def __init__(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None, program: str = "mbrl.cli.main"
    ) -> None:
        self._output = Path(mkdtemp())
        variables = {**os.environ, **(environment or {})}
        work = (program, tuple(map(str, arguments)), variables, Path.cwd(), self._output)
        self._process: ForkServerProcess = _server.Process(target=_work, args=work)
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.exitcode is None

    @property
    def process_id(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> int:
        """Kill the process (SIGKILL); returns its exit code."""
        self._process.kill()
        return self.wait().returncode

    def wait(self, seconds: float = 250) -> Done:
        """Wait for the end.

        Raises:
            TimeoutError: the process was still running after that many seconds; it is killed.
        """
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {seconds} s: {self._text('stderr')[-2000:]}")
        return Done(self._process.exitcode, self._text("stdout"), self._text("stderr"))

    def _text(self, name: str) -> str:
        file = self._output / name
        return file.read_text(errors="replace") if file.exists() else ""


def run_command(*arguments: str | Path, **options: Any) -> Done:
    """Run `mbrl ARGUMENTS` to its end."""
    return Command(*arguments, **options).wait()


def _work(program: str, arguments: tuple[str, ...], variables: dict[str, str], folder: Path, output: Path) -> None:
    gc.freeze()  # what the server imported is neither looked through nor copied
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)  # as a process has it that was not forked by this module
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    sys.exit(import_module(program).main(arguments))


def server_seconds() -> float:
    """CPU time of the server and of those commands that have ended, as Linux reports it; 0 elsewhere."""
    process = forkserver._forkserver._forkserver_pid
    report = Path(f"/proc/{process}/stat")
    if process is None or not report.exists():
        return 0.0
    ticks = report.read_text().rpartition(")")[2].split()[11:15]  # user and system, its own and its children's
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
