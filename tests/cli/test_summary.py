"""What `mbrl train` prints around a run: where it starts, how it ended, and that a finished run is left alone."""

from pathlib import Path
from typing import Any

import pytest

import mbrl
from mbrl.cli.configured import run_once
from mbrl.cli.summary import opening, summary
from mbrl.errors import UserError
from mbrl.run_folder.checkpoint import Checkpoints
from tests.test_training import TOY, compose_config

pytestmark = pytest.mark.process  # whole commands


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(folder.rglob("*")) if file.is_file()
    }


def test_a_run_ends_with_a_summary_and_is_not_redone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose_config(tmp_path / "run", *TOY, "agent=random", "total_env_steps=40")
    assert run_once(config, tmp_path / "own") == tmp_path / "run"
    first, *others = capsys.readouterr().err.splitlines()
    assert first == f"mbrl: training random on toy for 40 env steps, into {tmp_path / 'run'}"
    shown = "\n".join(others)
    for part in (
        "random on toy: 40 env steps in ",
        " cores busy",
        "in the last evaluation",
        "curve.png",
        f"in {tmp_path / 'run'}:",
    ):
        assert part in shown
    assert f"mbrl evaluate {tmp_path / 'run'} --video film.mp4 --config-dir {tmp_path / 'own'} " in shown
    assert "imagination.mp4" not in shown and "mbrl predict" not in shown, "this agent imagines nothing"
    before = contents(tmp_path / "run")
    left_over = tmp_path / "run" / "checkpoints" / ".checkpoint-000000000020.old"
    left_over.mkdir()
    (left_over / "values.json").touch()
    run_once(config)
    assert not left_over.exists()
    again = capsys.readouterr().err
    assert again.startswith(f"mbrl: {tmp_path / 'run'} was finished before: nothing was done\n")
    assert "in the last evaluation" in again
    assert contents(tmp_path / "run") == before, "nothing is drawn or written anew"
    with pytest.raises(UserError, match="belongs to another config"):
        run_once(compose_config(tmp_path / "run", *TOY, "agent=random", "total_env_steps=40", "seed=7"))


def test_a_resumed_run_says_from_which_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = compose_config(tmp_path, *TOY, "agent=random")
    Checkpoints(tmp_path / "checkpoints", {}).save(80)
    assert opening(tmp_path, config) == f"resuming {tmp_path} from env step 80 of 120"


def test_a_run_of_ones_own_environment_is_opened_by_who_trained_it_or_names_it(tmp_path: Path) -> None:
    name = "tests.termination:Corridor-v0"
    settings = {"total_env_steps": 40, "eval.every": 40, "eval.episodes": 1, "collect.frames_per_batch": 10}
    run = mbrl.train({"env": "gym", "env.id": name, "agent": "random", "run_dir": tmp_path / "run", **settings})
    assert run.config.env.id == name
    with pytest.raises(UserError, match=r"a \.yaml that names it \(id: tests\.termination:Corridor-v0\)"):
        mbrl.load(run.folder)
    assert "--video film.mp4 --config-dir DIR " in summary(run.folder)
    (tmp_path / "own" / "env").mkdir(parents=True)
    (tmp_path / "own" / "env" / "mine.yaml").write_text(f"id: {name}\n")
    assert mbrl.load(run.folder, tmp_path / "own").config == run.config
