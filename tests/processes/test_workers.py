"""Worker processes: they end with their parent, are named when they die, and share tensors under any TMPDIR."""

import multiprocessing
import os
import signal
import time
from multiprocessing import connection
from pathlib import Path

import pytest

from mbrl.cli.errors import RUN_ERROR, explain
from mbrl.errors import ProcessDied, UserError
from mbrl.processes import workers
from mbrl.processes.workers import Watch, end_with_parent, naming_dead_loaders, starting_workers

fork = multiprocessing.get_context("fork")


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def follow_and_sleep(ready) -> None:
    end_with_parent()
    ready.send(os.getpid())
    time.sleep(60)


def start_and_sleep(ready) -> None:
    for _ in range(2):
        fork.Process(target=follow_and_sleep, args=(ready,)).start()
    time.sleep(60)


@pytest.mark.parametrize("killed_by", ["the kernel", "themselves"])
def test_workers_end_with_a_parent_that_was_killed(killed_by, monkeypatch):
    if killed_by == "themselves":  # as where there is no Linux
        monkeypatch.setattr(workers, "_killed_by_kernel", lambda: False)
        monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    receive, send = fork.Pipe(duplex=False)
    parent = fork.Process(target=start_and_sleep, args=(send,))
    parent.start()
    children = [receive.recv(), receive.recv()]
    assert all(map(is_running, children))
    parent.kill()
    parent.join()
    assert until(lambda: not any(map(is_running, children)))


def end_by(how: int) -> None:
    if how < 0:
        os.kill(os.getpid(), -how)
    os._exit(how)


@pytest.mark.parametrize(
    ("code", "words"), [(-signal.SIGKILL, "was killed by SIGKILL"), (-signal.SIGUSR1, "SIGUSR1"), (3, "exit code 3")]
)
def test_names_the_worker_that_died_and_ends_the_others(code, words):
    processes = [fork.Process(target=time.sleep, args=(60,)), fork.Process(target=end_by, args=(code,))]
    for process in processes:
        process.start()
    watch = Watch(processes, "collecting")
    assert until(lambda: watch.died is not None)
    assert str(watch.died).startswith("collecting worker 1 of 2 ") and words in str(watch.died)
    processes[0].join(20)
    assert processes[0].exitcode == -signal.SIGKILL
    line, exit_code = explain(watch.died)
    assert exit_code == RUN_ERROR and "the same command goes on" in line


def test_workers_that_end_when_they_are_told_have_not_died():
    processes = [fork.Process(target=end_by, args=(0,)) for _ in range(2)]
    for process in processes:
        process.start()
    watch = Watch(processes, "collecting")
    for process in processes:
        process.join()
    time.sleep(0.1)
    assert watch.died is None


def ignores_signals(ready) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    ready.send("still there")


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: pytest that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_workers_leave_signals_of_a_terminal_or_a_cluster_to_their_parent():
    receive, send = fork.Pipe(duplex=False)
    with starting_workers():
        worker = fork.Process(target=ignores_signals, args=(send,))
        worker.start()
    assert receive.poll(20) and receive.recv() == "still there"
    worker.join()
    with pytest.raises(KeyboardInterrupt), starting_workers():
        os.kill(os.getpid(), signal.SIGINT)  # of this process it comes at the end of the block


def listens(ready) -> None:
    with starting_workers(), connection.Listener() as listener:
        assert isinstance(listener.address, str)
        ready.send(len(os.fsencode(listener.address)))


def in_process(folder: Path):
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=_with_tmpdir, args=(folder, send))
    process.start()
    process.join()
    return receive.recv()


def _with_tmpdir(folder: Path, ready) -> None:
    import tempfile

    tempfile.tempdir = str(folder)
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
    try:
        listens(ready)
        assert tempfile.gettempdir() == str(folder)  # all else stays where the user wants it
    except UserError as error:
        ready.send(str(error))


@pytest.mark.parametrize("length", [60, 75, 110, 230])
def test_sockets_fit_whatever_tmpdir_is(length, tmp_path):
    folder = tmp_path / ("x" * max(1, length - len(str(tmp_path)) - 1))
    folder.mkdir()
    assert in_process(folder) < workers.SOCKET_PATH_BYTES


def test_no_folder_with_a_short_path_is_one_line(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setattr(workers, "SHORT_FOLDERS", ())
    assert "export TMPDIR=/tmp" in in_process(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "process id 12 was killed by a signal (Killed)"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "process id 12, 13 ended unexpectedly"),
    ],
)
def test_a_dead_data_loading_worker_is_named(text, words):
    with pytest.raises(ProcessDied) as raised, naming_dead_loaders():
        raise RuntimeError(text)
    assert words in str(raised.value)
    with pytest.raises(RuntimeError, match="a defect"), naming_dead_loaders():
        raise RuntimeError("a defect")
