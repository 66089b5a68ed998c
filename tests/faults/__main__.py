"""Tries every fault of this package and prints what came of them:

python -m tests.faults             everything, in some 3 hours on one core
python -m tests.faults --every 20  kills, I/O errors and damage at every 20th place alone, in some 20 minutes
python -m tests.faults --short     a few of each, as the test suite does

A line for each kind of fault: how many were tried; how many the run survived, which is that it went on and ended equal,
to the bit, to one that was left alone (of a setting: that it was accepted, and means something); after how many the
command said one clear line and left with a non-zero exit code; and how many did neither. The exit status is 1 where
there are any of those.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.faults import damage, errors, folders, kills, malformed, planted, settings
from tests.faults.runs import AGENTS, SHORT_AGENTS, Result, Whole


def results(agents: Iterable[str], folder: Path, *, every: int, short: bool) -> Iterator[Result]:
    """Every fault, of every kind, for each agent."""
    for agent in agents:
        whole = Whole(agent, folder / agent)
        yield from kills.tried(whole, every=every, short=short)
        yield from kills.asked(whole, every=every, short=short)
        yield from errors.tried(whole, every=every, short=short)
        yield from damage.tried(whole, every=every, short=short)
    yield from planted.tried(folder / "planted", short=short)
    yield from malformed.tried(folder / "malformed", short=short)
    yield from folders.tried(folder / "folders", short=short)
    yield from settings.tried(folder / "settings", short=short)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few of each kind")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="places from one to the next")
    default = f"(default: {' '.join(AGENTS)}; {' '.join(SHORT_AGENTS)} with --short)"
    parser.add_argument("--agents", nargs="*", metavar="AGENT", help=f"agents whose runs are disturbed {default}")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the run folders there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    agents = (SHORT_AGENTS if options.short else AGENTS) if options.agents is None else options.agents
    counts: dict[str, Counter[str]] = {}
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        for result in results(agents, options.keep or Path(temporary), every=options.every, short=options.short):
            counts.setdefault(result.kind, Counter())[result.outcome] += 1
            if result.outcome == "failed":
                failed.append(result)
                print(f"failed: {result.kind}, {result.name}: {result.details}", file=sys.stderr, flush=True)
    print(f"{'fault':<44}{'tried':>7}{'survived':>10}{'one clear line':>16}{'failed':>8}")
    for kind, count in counts.items():
        numbers = f"{count.total():>7}{count['survived']:>10}{count['one line']:>16}{count['failed']:>8}"
        print(f"{kind:<44}{numbers}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
