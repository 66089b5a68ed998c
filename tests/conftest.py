"""The tiers of the tests, a limit to their CPU time, and what they share: one thread per process, one seed."""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

# Before torch is imported, and for the processes that tests start: two threads of OpenMP on busy cores are ten times
# slower than one, and no faster on quiet cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import absl.logging
from hypothesis import settings

from tests.command import server_seconds

# rliable's logging takes hold of the stderr that it finds, and closes it when Hydra sets logging up again. Here that
# would be the stderr that pytest captures.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


def asks_for_gpu(arguments: Sequence[str]) -> bool:
    """Whether pytest is called for the tests of a GPU, as in `pytest -m gpu tests/gpu`."""
    given = pairwise(["", *arguments])
    return any(each.startswith("tests/gpu") or (option == "-m" and each.startswith("gpu")) for option, each in given)


# Tests run on the CPU, whatever the machine has, unless those of a GPU are asked for.
if "PYTEST_XDIST_WORKER" not in os.environ and not asks_for_gpu(sys.argv[1:]):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# from the longest to the shortest, in which order they run, so that no process has a long test left at the end
TIERS = ("slow", "gpu", "process", "learns", "unit")
# of CPU time in one unit test; the longest one takes 3 s on an AMD EPYC, 9 s on a slow Intel Xeon, and 12 s where
# that is busy
UNIT_SECONDS = 20.0
SUITE_SECONDS = 480.0  # of CPU time in all of `make test`: on two cores 4 minutes, and one for pytest's own start
PROCESS_BYTES = 2_500_000_000  # of memory for one process of pytest-xdist and what it starts; the largest had 1.65 GB
_STARTED = pytest.StashKey[float]()


def tier(item: pytest.Item) -> str:
    """The tier of a test: that of its markers, `unit` without one."""
    return next((name for name in TIERS if item.get_closest_marker(name)), "unit")


def cpu_seconds() -> float:
    """CPU time so far of this process and of the processes that it started, of those that have ended."""
    return sum(os.times()[:4]) + server_seconds()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `--numprocesses auto`: one for each core that this process may use, or fewer for want of memory.

    By itself pytest-xdist counts the physical cores of the machine, also where a container may use two of them.
    """
    import torch

    from mbrl.processes.usage import usable_cores
    from mbrl.settings.memory import free_memory

    return max(1, min(usable_cores(), free_memory(torch.device("cpu")) // PROCESS_BYTES))


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if tier(item) == "unit":
            item.add_marker("unit")
    items.sort(key=lambda item: TIERS.index(tier(item)))


def pytest_collection_finish() -> None:
    gc.freeze()  # the modules stay; gc, which looks through them each time, took a twentieth of the time


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_STARTED] = cpu_seconds()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)  # the order of the tests decides nothing
    if tier(item) == "gpu" and (torch is None or not torch.cuda.is_available()):
        pytest.skip("needs a GPU: pytest -m gpu tests/gpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A unit test that has become slow fails: the suite stays short only if each test does."""
    start = cpu_seconds()
    yield
    seconds = cpu_seconds() - start
    if tier(item) == "unit" and seconds > UNIT_SECONDS:
        pytest.fail(
            f"it took {seconds:.1f} s of CPU time, and a unit test may take {UNIT_SECONDS:g} s: make it smaller, or "
            "give it the tier that it belongs to (markers in pyproject.toml)",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as it was before a test called a command in this process
    item.user_properties += [("tier", tier(item)), ("cpu_seconds", round(cpu_seconds() - item.stash[_STARTED], 3))]


@pytest.fixture
def fork_server() -> Iterator[None]:
    """Processes for which no start method is chosen come from the server of `tests.command`, in a tenth of the time."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


class Budget:
    """Prints the CPU time of each tier, over all processes of pytest-xdist, and warns where it is too much.

    It also names each test that has failed as soon as it has.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:  # at once: a run that is broken off prints no summary
            print(
                f"\n{report.nodeid}", *report.longreprtext.splitlines()[-1:], sep=": ", file=sys.__stderr__, flush=True
            )
        if report.when == "teardown":
            properties = dict(report.user_properties)
            self.seconds.setdefault(str(properties["tier"]), []).append(float(properties["cpu_seconds"]))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.seconds:
            return
        spent = [f"{name} {sum(each):.0f} s in {len(each)} tests" for name, each in sorted(self.seconds.items())]
        terminalreporter.write_line(f"CPU time: {', '.join(spent)}")
        total = sum(sum(each) for name, each in self.seconds.items() if name not in ("slow", "gpu"))
        if total > SUITE_SECONDS:
            text = f"the tests took {total:.0f} s of CPU time, more than the {SUITE_SECONDS:g} s that they may take"
            terminalreporter.write_line(f"warning: {text}: see --durations=40", yellow=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "not slow":  # with -m slow or -m '' the examples are random
        settings.register_profile("same_examples", derandomize=True)
        settings.load_profile("same_examples")
    if not hasattr(config, "workerinput"):  # a process of pytest-xdist reports to the one that started it
        config.pluginmanager.register(Budget())
