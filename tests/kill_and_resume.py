"""Kills real runs at random moments, many times, and compares them with a run that was left alone:

python -m tests.kill_and_resume sac mbpo --kills 10

Each agent runs experiment=smoke (real Meta-World, longer than usual) once to its end. The same run in another folder
is killed (SIGKILL) after a time drawn uniformly from what the first one took, started again, and so on; after the last
kill it goes to its end. Then every metric but the clock's, every evaluation and every tensor of the last checkpoint
must be equal, to the bit. The exit status is 1 where one is not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.run_folders import rows, weights

SMOKE = ["experiment=smoke", "env.task=reach", "total_env_steps=400", "video=false"]


def command(agent: str, run_dir: Path, overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "mbrl", "train", *SMOKE, f"agent={agent}", f"run_dir={run_dir}", *overrides]


def to_its_end(command: Sequence[str]) -> float:
    """Seconds that it took."""
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return time.monotonic() - start


def killed_after(command: Sequence[str], seconds: float) -> bool:
    """Whether it was still running then; a run that fails by itself ends everything."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        if process.wait(seconds) != 0:
            sys.exit(f"failed: {' '.join(command)}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def differences(one: Path, other: Path) -> list[str]:
    found = [] if rows(one) == rows(other) else ["metrics.jsonl"]
    for name in ("eval.csv", "eval_tasks.csv"):
        texts = [file.read_text() if (file := run / name).exists() else None for run in (one, other)]
        found += [name] if texts[0] != texts[1] else []
    ours, theirs = weights(one), weights(other)
    if not ours:
        sys.exit(f"{one} has no checkpoint to compare")
    return found + sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def attempt(agent: str, kills: int, overrides: Sequence[str], moments: random.Random) -> list[str]:
    """What differs in the end."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        seconds = to_its_end(command(agent, whole, overrides))
        hits = 0
        for _ in range(kills):
            hits += killed_after(command(agent, killed, overrides), moments.uniform(0, seconds))
        if not hits:
            sys.exit(f"{agent}: every run had ended before its kill; try again")
        to_its_end(command(agent, killed, overrides))
        found = differences(whole, killed)
        print(f"{agent}: killed {hits} times, {', '.join(found) if found else 'equal'}", flush=True)
        return found


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", metavar="AGENT")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="of each agent's run (default: 10)")
    parser.add_argument("--seed", type=int, help="of the moments (default: other ones each time)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings")
    return parser


def main() -> int:
    options = build_parser().parse_args()
    moments = random.Random(options.seed)
    differing = [agent for agent in options.agents if attempt(agent, options.kills, options.set, moments)]
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
