"""Record episodes: their alignment, their files, and that bad files are refused by name."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mbrl.data.episodes import check_records, read_episode, read_episodes, to_records, write_episode
from mbrl.data.published import infer_success, read_npz, read_published
from mbrl.envs.toy import make_env
from mbrl.replay.demonstrations import read_demonstrations
from tests.demonstrations import write_episodes
from tests.readmes import ROOT, blocks
from tests.shared_data import SHARED_DATA

PUBLISHED = SHARED_DATA / "official-demos"


@pytest.fixture
def records() -> TensorDict:
    return to_records(make_env(resolution=8, episode_length=6).rollout(100))


def test_records_hold_what_an_action_led_to() -> None:
    rollout = make_env(resolution=8, episode_length=6).rollout(100)
    records = to_records(rollout)
    assert records.shape == (7,)
    assert torch.equal(records["pixels"][:-1], rollout["pixels"])
    assert torch.equal(records["pixels"][1:], rollout["next", "pixels"])
    assert torch.equal(records["state"][1:], rollout["next", "state"])
    assert torch.equal(records["action"][:-1], rollout["action"])
    assert torch.equal(records["reward"][:-1], rollout["next", "reward"])
    assert records["truncated"].flatten().tolist() == [False] * 5 + [True, False]
    for key in ("action", "reward", "success", "terminated", "truncated"):
        assert not records[key][-1].any()
    assert "frames" not in set(records.keys())


def test_files_round_trip(records: TensorDict, tmp_path: Path) -> None:
    paths = write_episodes(tmp_path / "demos", [records, records[:4]])
    assert [path.name for path in paths] == ["episode-00000.safetensors", "episode-00001.safetensors"]
    first, second = read_episodes(tmp_path / "demos")
    assert set(first.keys()) == set(records.keys())
    assert all(torch.equal(first[key], records[key]) for key in set(records.keys()))
    assert len(second) == 4
    assert [path.name for path in (tmp_path / "demos").iterdir() if path.name.startswith(".")] == []


def test_a_failed_write_leaves_the_old_file(
    records: TensorDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "episode.safetensors"
    write_episode(path, records)
    before = path.read_bytes()

    written = os.write

    def fill_disk(descriptor: int, content: memoryview) -> int:
        written(descriptor, content[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fill_disk)
    with pytest.raises(OSError, match="No space"):
        write_episode(path, records)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward", torch.full((7, 1), float("nan"))),
        ("state", torch.full((7, 4), float("inf"))),
        ("reward", torch.zeros(7)),
        ("reward", torch.zeros(7, 1, dtype=torch.float64)),
        ("pixels", torch.zeros(7, 3, 8, 9, dtype=torch.uint8)),
        ("pixels", torch.zeros(7, 3, 8, 8)),
        ("success", torch.zeros(7, 1)),
        ("action", torch.zeros(7, 1, 2)),
    ],
)
def test_bad_records_are_refused(records: TensorDict, tmp_path: Path, key: str, value: torch.Tensor) -> None:
    records[key] = value
    with pytest.raises(ValueError, match=f"^somewhere: {key}"):
        check_records(records, "somewhere")
    with pytest.raises(ValueError):
        write_episode(tmp_path / "episode.safetensors", records)
    assert list(tmp_path.iterdir()) == []


def test_missing_keys_are_named(records: TensorDict) -> None:
    with pytest.raises(ValueError, match="lacks action"):
        check_records(records.exclude("action"), "x")
    with pytest.raises(ValueError, match="lacks pixels or state"):
        check_records(records.exclude("pixels", "state"), "x")


def test_torn_files_are_named_or_counted(records: TensorDict, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, torn = write_episodes(tmp_path, [records, records])
    torn.write_bytes(torn.read_bytes()[:-100])
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"episode-00001\.safetensors: torn") as error:
        read_episode(torn)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError):
        read_episodes(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(read_episodes(tmp_path, strict=False)) == 1
    assert "left out 2 of 3" in caplog.text


def test_the_writer_of_the_readme_writes_a_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (block.text for block in blocks(ROOT / "mbrl/data/README.md") if block.language == "python")
    names: dict[str, Any] = {}
    exec(code, names)
    (episode,) = read_demonstrations(Path("runs/data/mine"), task="window-close", action_repeat=2, view="corner")
    assert episode["action"].shape == (names["rows"], 4) and episode["truncated"].nonzero().tolist() == [[49, 0]]


def test_a_folder_without_episodes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no episodes"):
        read_episodes(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_episodes(tmp_path / "nowhere")


def published(rows: int = 5, **changes: object) -> dict[str, np.ndarray]:
    """As published: row k is what action[k] led to, its picture of brightness k, brighter to the left."""
    pictures = np.zeros((rows, 3, 8, 8), np.uint8) + np.arange(rows, dtype=np.uint8)[:, None, None, None]
    pictures[..., 0] += 100
    older = np.concatenate([pictures[:1], pictures[:-1]])
    action = np.arange(rows, dtype=np.float32)[:, None] * np.array([[0.1, -1.0, 0.0, 0.0]], np.float32)
    reward = np.array([0, 1, 2, 25, 12], np.float32)[:rows, None]
    entries: dict[str, np.ndarray] = {
        "observation": np.concatenate([older, older, pictures], 1),
        "action": action,
        "reward": reward,
        "discount": np.ones((rows, 1), np.float32),
    }
    return entries | changes  # type: ignore[operator]


def test_published_files_become_records(tmp_path: Path) -> None:
    path = tmp_path / "20240513T151859_0_4.npz"
    np.savez_compressed(path, **published())
    records = read_published(path)
    check_records(records, "x")
    assert records["pixels"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]  # the newest of the stack
    assert records["pixels"][0, 0, 0].tolist() == [0] * 7 + [100]  # turned the right way
    assert torch.allclose(records["action"][:, 0], torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]))
    assert records["action"][:, 1].tolist() == [-1.0] * 4 + [0.0]  # clipped, as the environment does
    assert records["success"].flatten().tolist() == [False, False, True, True, False]
    assert records["reward"].flatten().tolist() == [1.0, 2.0, 15.0, 2.0, 0.0]
    assert records["truncated"].flatten().tolist() == [False, False, False, True, False]
    assert len(read_episodes(tmp_path)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"action": np.zeros((4, 4), np.float32)},
        {"observation": np.zeros((5, 8, 8, 8), np.uint8)},
        {"observation": np.zeros((5, 9, 8, 8), np.float32)},
        {"reward": np.full((5, 1), np.nan, np.float32)},
        {"action": np.full((5, 4), np.nan, np.float32)},
        {"reward": np.array([{}] * 5, dtype=object)},
    ],
)
def test_bad_published_files_are_named(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **published(**changes))
    with pytest.raises(ValueError, match=r"bad\.npz: ") as error:
        read_published(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("actions", [None, 4, 3])
def test_videos_in_the_pretraining_layout_read(tmp_path: Path, actions: int | None) -> None:
    image = np.arange(4 * 6 * 8 * 3, dtype=np.uint8).reshape(4, 6, 8, 3)
    action = np.arange(4.0)[:actions, None]  # float64, as some are
    np.savez_compressed(tmp_path / "a.npz", image=image, **({} if actions is None else {"action": action}))
    records = read_npz(tmp_path / "a.npz")
    assert np.array_equal(records["pixels"].permute(0, 2, 3, 1).numpy(), image)
    assert set(records) == {"pixels"} if actions is None else {"pixels", "action"}
    if actions is not None:
        assert records["action"].tolist() == [[0.0], [1.0], [2.0], [3.0 if actions == 4 else 0.0]]


@pytest.mark.parametrize(
    "entries",
    [
        {"image": np.zeros((4, 6, 8, 3), np.float32)},
        {"image": np.zeros((4, 3, 6, 8), np.uint8)},
        {"image": np.zeros((4, 6, 8, 3), np.uint8), "action": np.zeros((2, 1), np.float32)},
        {"image": np.zeros((4, 6, 8, 3), np.uint8), "action": np.full((4, 1), np.inf, np.float32)},
        {"rgb": np.zeros((4, 6, 8, 3), np.uint8)},
    ],
)
def test_bad_videos_are_named(tmp_path: Path, entries: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "bad.npz", **entries)
    with pytest.raises(ValueError, match=r"bad\.npz: ") as error:
        read_npz(tmp_path / "bad.npz")
    assert "\n" not in str(error.value)


def test_success_is_inferred_from_the_bonus() -> None:
    reward = np.array([2, 9, 12, 15, 25, 30, 18, 13, 9, 12, 3, 14], np.float32)
    expected = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1]
    assert infer_success(reward).tolist() == [bool(flag) for flag in expected]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no ../shared/data/official-demos beside this checkout")
def test_the_published_demonstrations_read() -> None:
    for task in ("plate-slide", "hammer", "coffee-push"):
        episodes = read_episodes(PUBLISHED / task)
        assert [tuple(episode["pixels"].shape) for episode in episodes] == [(101, 3, 64, 64)] * 5
        assert all(episode["success"].any() and episode["reward"].max() <= 20 for episode in episodes)
        assert all(episode["action"].abs().max() <= 1 for episode in episodes)
