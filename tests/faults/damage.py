"""Each file of a run folder flipped, cut, zeroed, emptied, removed or swapped; the run goes on, or says why not."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.runs import Result, Whole
from tests.run_folders import latest_checkpoint

CHECKPOINTS_BEFORE = 2  # that the run has when it is cut
# what a run writes down for people to read: a lost line is no reason to stop
LOGS = {"metrics.jsonl", "eval.csv", "starts.jsonl", "curve.png", "curve.svg"}


def flipped(file: Path, position: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * position)] ^= 4
    file.write_bytes(content)


def _swapped(file: Path) -> None:
    """The same file of the checkpoint before."""
    other = next(path for path in sorted(file.parent.parent.iterdir()) if path != file.parent)
    shutil.copyfile(other / file.name, file)


def _exchanged(file: Path) -> None:
    """The file and the next one of the same checkpoint, each in the other's place."""
    files = sorted(file.parent.iterdir())
    other = files[(files.index(file) + 1) % len(files)]
    contents = file.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    file.write_bytes(contents[1])


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "first byte flipped": lambda file: flipped(file, 0.0),
    "middle byte flipped": flipped,
    "last byte flipped": lambda file: flipped(file, 1 - 1e-9),
    "cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "emptied": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
    "a folder in its place": _folder,
}
TEXTS: dict[str, Callable[[Path], Any]] = {  # of JSON and YAML
    "a list in its place": lambda file: file.write_text("[1]"),
    "an empty object in its place": lambda file: file.write_text("{}"),
    "nested deep": lambda file: file.write_text("[" * 900 + "]" * 900),
}


def tried(whole: Whole, *, every: int, short: bool) -> Iterator[Result]:
    """Of checkpoints and the replay, a run that ends must end equal; of logs, with equal weights.

    Args:
        every: cases from one to the next. short: one case alone for every other file.
    """
    cut = _cut(whole)
    for file, name, damage in list(_cases(cut, short))[:: 1 if short else every]:
        yield _try(whole, cut, file, name, damage)


def _cases(cut: Path, short: bool) -> Iterator[tuple[Path, str, Callable[[Path], Any]]]:
    """A file, relative to the run that was cut, with a damage and its name."""
    files = sorted(file.relative_to(cut) for file in cut.rglob("*") if file.is_file() and file.name != ".lock")
    newest = latest_checkpoint(cut).relative_to(cut)
    for number, file in enumerate(files):
        older = file.parts[0] == "checkpoints" and file.parent != newest
        if older or "tensorboard" in file.parts or (short and (file.name in LOGS or number % 2)):
            continue
        damages = dict(DAMAGES)
        if file.parent == newest:
            damages |= {"of the checkpoint before": _swapped, "exchanged with another": _exchanged}
        if file.suffix in (".json", ".yaml"):
            damages |= TEXTS
        names = list(damages)
        for name in [names[number % len(names)]] if short else names:
            yield file, name, damages[name]


def _try(whole: Whole, cut: Path, file: Path, name: str, damage: Callable[[Path], Any]) -> Result:
    kind = f"damaged file, {whole.agent}"
    run = whole.new_folder(copy_of=cut)
    damage(run / file)
    ended = whole.train(run)
    if ended.is_one_clear_line:
        shutil.rmtree(run)
        return Result(kind, f"{file} {name}", "one line", ended.error_lines[0])
    if ended.code != 0:
        return Result(kind, f"{file} {name}", "failed", f"exit code {ended.code}: {ended.errors[-1500:]}")
    result = whole.judge(kind, f"{file} {name}", run, resumed=False)
    if file.name in LOGS and result.details in ("metrics.jsonl", "eval.csv"):
        return result._replace(outcome="survived")
    return result


def _cut(whole: Whole) -> Path:
    """A run that was killed soon after its second checkpoint."""
    from mbrl.run_folder.checkpoint import Checkpoints

    saves, save = [], Checkpoints.save

    def then_die(self: Checkpoints, step: int) -> None:
        save(self, step)
        saves.append(step)
        if len(saves) == CHECKPOINTS_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)

    run = whole.new_folder()
    ended = whole.train(run, lambda: setattr(Checkpoints, "save", then_die))
    assert ended.code == -signal.SIGKILL, ended.errors
    return run
