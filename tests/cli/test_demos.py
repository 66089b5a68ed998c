"""`mbrl demos`: what it records is what a run's environment shows, and what it does not is refused in one line."""

from pathlib import Path

import pytest

from mbrl.data.episodes import episode_paths, read_metadata
from mbrl.errors import UserError
from tests.command import run_command
from tests.run_folders import build_replay
from tests.test_training import compose_config

TASK = "drawer-close"
SMALL = ["experiment=demonstrations", "agent=drqv2", f"env.task={TASK}", "env.resolution=16"]
RECORDED = "`mbrl demos drawer-close --camera {} --output FOLDER`"
REFUSED = rf"is of view {{}}, and the environment's view is {{}}: .* as {RECORDED} records them$"


@pytest.mark.process
@pytest.mark.parametrize("mirrored", [True, pytest.param(False, marks=pytest.mark.slow)])  # 3 s
def test_the_orientation_of_a_protocol_can_be_recorded(tmp_path: Path, mirrored: bool) -> None:
    flags = ["--episodes", "1", "--resolution", "16", "--output", str(tmp_path / "demos")]
    done = run_command("demos", TASK, *flags, *(["--mirrored"] if mirrored else []))
    assert done.returncode == 0, done.stderr
    (path,) = episode_paths(tmp_path / "demos")
    assert read_metadata(path)["view"] == ("corner mirrored" if mirrored else "corner")

    def build(protocol: str) -> int:
        settings = [*SMALL, f"protocol={protocol}", f"replay.demos={tmp_path / 'demos'}"]
        demos = build_replay(compose_config(tmp_path / "run", *settings), tmp_path / protocol).demos
        return 0 if demos is None else len(demos)

    accepted, refused = ("ivideogpt", "default") if mirrored else ("default", "ivideogpt")
    assert build(accepted) > 0
    views = ("corner mirrored", "corner", "corner") if mirrored else ("corner", "corner mirrored", "corner --mirrored")
    with pytest.raises(UserError, match=REFUSED.format(*views)) as error:
        build(refused)
    assert "\n" not in str(error.value)
