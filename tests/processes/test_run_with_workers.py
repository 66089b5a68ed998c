"""A run with worker processes: no port is opened, a killed worker is named, and SIGTERM leaves a checkpoint."""

import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from mbrl.run_folder.paths import checkpoint_folders
from tests.command import Command
from tests.processes.test_workers import is_running, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc"),
]
SETTINGS = [
    "env=toy", "experiment=smoke", "agent=sac", "collect.workers=2", "collect.frames_per_batch=4", "device=cpu",
    "total_env_steps=10000", "checkpoint_every=40", "eval.every=10000", "video=false",
]  # fmt: skip


def descendants(process: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return children + [inner for child in children for inner in descendants(child)]


def listening_sockets(processes: list[int]) -> list[str]:
    """The ports that these processes listen at, as the kernel writes them."""
    inodes = set()
    for process in processes:
        with suppress(OSError):  # the process has ended since
            for file in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):  # closed since
                    inodes.add(str(file.readlink()))
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            bound = words[3] == "0A" if table.startswith("tcp") else True
            if bound and f"socket:[{words[9]}]" in inodes:
                found.append(f"{table} {words[1]}")
    return found


def rows(run: Path) -> list[str]:
    file = run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def test_a_killed_worker_is_named_and_sigterm_leaves_a_checkpoint(tmp_path):
    run, deep = tmp_path / "run", tmp_path / ("x" * 120)
    deep.mkdir()
    start = [*SETTINGS, f"run_dir={run}"]

    command = Command("train", *start, environment={"TMPDIR": str(deep)})
    assert until(lambda: len(rows(run)) > 12 or not command.running, 200)
    processes = descendants(command.process_id)
    assert len(processes) >= 2 and listening_sockets([command.process_id, *processes]) == []
    os.kill(worker_of(processes), signal.SIGKILL)
    done = command.wait()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mbrl: error:")]
    assert "collecting worker 1 of 2 was killed by SIGKILL" in line
    assert not any(map(is_running, processes))
    saved = max(checkpoint_folders(run / "checkpoints"))

    before = rows(run)
    command = Command("train", *start)  # It cuts the rows to those of the checkpoint, and writes on.
    assert until(lambda: (now := rows(run)) != before and last_steps(now) > saved, 200)
    processes, told = descendants(command.process_id), last_steps(rows(run))
    os.kill(command.process_id, signal.SIGTERM)
    done = command.wait()
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert "interrupted; the same command resumes from the last checkpoint" in done.stderr
    assert until(lambda: not any(map(is_running, processes)))
    assert max(checkpoint_folders(run / "checkpoints")) == last_steps(rows(run)) >= told


def worker_of(processes: list[int]) -> int:
    """The last of the workers, which are started in their order, after multiprocessing's tracker of semaphores."""
    return [each for each in processes if (line := command_line(each)) and b"resource_tracker" not in line][-1]


def command_line(process: int) -> bytes:
    """Empty where the process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def last_steps(lines: list[str]) -> int:
    return int(json.loads(lines[-1])["env_steps"]) if lines else 0


def test_processes_that_have_ended_since_are_passed_over() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert f"tcp 0100007F:{server.getsockname()[1]:04X}" in listening_sockets([ended.pid, os.getpid()])
    assert worker_of([os.getpid(), ended.pid]) == os.getpid()
