"""`mbrl collect`: pure episodes, so that neither an interruption nor the number of workers leaves a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mbrl.cli import main as cli
from mbrl.collecting.collect import DatasetProtocol, TaskSummary, collect
from mbrl.data.episodes import read_episode, read_metadata

SHORT = DatasetProtocol(seed=3, noise=0.5, env={"resolution": 16, "episode_length": 20})
POLICIES = ["scripted", "noisy", "random"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.process
def test_episodes_are_shared_among_policies_and_all_kept(tmp_path: Path) -> None:
    rows = collect(["reach", "drawer-close-v3"], 5, policies=POLICIES, protocol=SHORT, output=tmp_path)
    assert rows == [
        TaskSummary(task, policy, count, 0)
        for task in ("reach", "drawer-close")
        for policy, count in (("scripted", 2), ("noisy", 2), ("random", 1))
    ]
    names = [
        f"{policy}-{n:05d}" for policy, count in (("noisy", 2), ("random", 1), ("scripted", 2)) for n in range(count)
    ]
    assert [path.stem for path in sorted((tmp_path / "reach").iterdir())] == names
    episodes = [read_episode(path) for path in sorted(tmp_path.rglob("*.safetensors"))]
    assert all(episode["pixels"].shape == (11, 3, 16, 16) for episode in episodes)
    about = [read_metadata(path) for path in sorted(tmp_path.rglob("*.safetensors"))]
    tasks = ["drawer-close"] * 5 + ["reach"] * 5
    assert about == [{"task": task, "action_repeat": 2, "view": "corner"} for task in tasks]
    goals = torch.stack([episode["state"][0, -3:] for episode in episodes[5:]])
    assert len(goals.unique(dim=0)) == 5  # no two episodes of a task have one goal


@pytest.mark.process
def test_the_policies_are_what_they_are_called(tmp_path: Path) -> None:
    collect(["reach"], 3, policies=POLICIES, protocol=DatasetProtocol(env={"resolution": 8}), output=tmp_path)
    scripted, noisy, random = (read_episode(tmp_path / "reach" / f"{name}-00000.safetensors") for name in POLICIES)
    roughness = [float(e["action"][:-1].diff(dim=0).abs().mean()) for e in (scripted, noisy, random)]
    assert roughness[0] < 0.1 < roughness[1] < 0.5 < roughness[2]
    assert scripted["success"].any()
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert (described["seed"], described["noise"], described["env"]["resolution"]) == (0, 0.3, 8)
    assert described["env"]["camera"] == "corner"
    assert set(described["versions"]) == {"metaworld", "mujoco", "torch"}


@pytest.mark.process
def test_what_is_there_is_not_played_again_and_the_rest_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    collect(["reach"], 4, policies=POLICIES[1:], protocol=SHORT, output=whole)
    collect(["reach"], 2, policies=POLICIES[1:], protocol=SHORT, output=broken)
    kept = {path: path.stat().st_mtime_ns for path in broken.rglob("*") if path.is_file()}
    random_numbers = torch.get_rng_state()
    collect(["reach"], 4, policies=POLICIES[1:], protocol=SHORT, output=broken)
    assert contents(broken) == contents(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert torch.equal(torch.get_rng_state(), random_numbers)
    monkeypatch.setattr("mbrl.collecting.collect.play", lambda *_: pytest.fail("nothing was missing"))
    collect(["reach"], 4, policies=POLICIES[1:], protocol=SHORT, output=broken)


@pytest.mark.process
def test_torn_episodes_are_played_anew(tmp_path: Path) -> None:
    rows = collect(["reach"], 4, policies=["random"], protocol=SHORT, output=tmp_path)
    whole = contents(tmp_path)
    emptied, cut, zeroed, _ = sorted((tmp_path / "reach").iterdir())
    emptied.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-50])
    zeroed.write_bytes(bytes(zeroed.stat().st_size))
    assert collect(["reach"], 4, policies=["random"], protocol=SHORT, output=tmp_path) == rows
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_a_killed_collection_of_two_workers_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mbrl.collecting.collect import *\n"
        "if __name__ == '__main__':\n"
        "    protocol = DatasetProtocol(3, 0.5, {'resolution': 16, 'episode_length': 20})\n"
        "    collect(['reach'], 30, protocol=protocol, workers=2, output=Path(sys.argv[1]))\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    folder = tmp_path / "killed"
    job = subprocess.Popen([sys.executable, str(file), str(folder)], stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(folder.rglob("[!.]*.safetensors"))) < 1:
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    job.wait()
    deadline = time.monotonic() + 10  # its workers end by themselves
    while time.monotonic() < deadline and _alive(job.pid):
        time.sleep(0.1)
    assert not _alive(job.pid)
    assert len(list(folder.rglob("[!.]*.safetensors"))) < 30
    collect(["reach"], 30, protocol=SHORT, output=folder)
    collect(["reach"], 30, protocol=SHORT, output=tmp_path / "whole")
    left_over = {path.name for path in folder.rglob(".*")}  # half-written, never under an episode's name
    assert {n: c for n, c in contents(folder).items() if Path(n).name not in left_over} == contents(tmp_path / "whole")


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.process
def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    collect(["reach"], 1, protocol=SHORT, output=tmp_path)
    before = contents(tmp_path)
    for protocol, named in (
        (DatasetProtocol(4, SHORT.noise, SHORT.env), "seed"),
        (DatasetProtocol(3, 0.1, SHORT.env), "noise"),
        (DatasetProtocol(3, 0.5, SHORT.env | {"resolution": 24}), r"env\.resolution"),
    ):
        with pytest.raises(ValueError, match=rf"was made with other settings \({named}\)"):
            collect(["reach"], 1, protocol=protocol, output=tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ValueError, match="holds episodes, but no dataset"):
        collect(["reach"], 1, protocol=SHORT, output=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reech"], "unknown Meta-World task 'reech': did you mean reach"),
        (["reach", "--policy", "scriptd"], "unknown policy 'scriptd': choose among scripted, noisy, random"),
        (["reach", "--noise", "-1"], "--noise: '-1' is not allowed: it must be a number in [0, 2]"),
        (["reach", "--camera", "front"], "unknown camera 'front'"),
        (["reach", "--resolution", "3"], "--resolution: '3' is not allowed: it must be a whole number in [8, 8192]"),
    ],
)
def test_a_slip_costs_one_line_and_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["collect", *arguments, "--output", str(tmp_path / "data")])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.startswith("mbrl: error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "data").exists()


@pytest.mark.process
def test_the_command_prints_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["collect", "drawer-close", "--episodes", "1", "--resolution", "16"])
    assert left.value.code == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "drawer-close  scripted  1         1.00",
        "runs/data/drawer-close",
    ]
