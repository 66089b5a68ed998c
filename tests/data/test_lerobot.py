"""LeRobot data sets of both layouts: each frame beside its own action, and one line where something is missing."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mbrl.data.segments import EpisodeData
from tests.data import lerobot_files
from tests.data.lerobot_files import grey, write_v2, write_v3

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra: pip install -e '.[lerobot]'")
parquet = pytest.importorskip("pyarrow.parquet")

LENGTHS = [5, 3, 4]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_pictures(folder: Path, lengths: list[int]) -> None:
    write_v2(folder, lengths, pictures_in_parquet=True)


@pytest.mark.parametrize("write", [write_v2, write_v3, write_pictures])
def test_both_layouts_read_back(tmp_path: Path, write: Callable[[Path, list[int]], None]) -> None:
    folder = tmp_path / "data"
    write(folder, LENGTHS)
    data = EpisodeData(folder, resolution=16)
    assert (list(data.lengths), data.action_dim) == (LENGTHS, 2)
    assert data.names == ["episode_000000", "episode_000001", "episode_000002"]
    assert data.keys == ("action", "reward", "success", "state")
    for episode, length in enumerate(LENGTHS):
        segment = data.segment(episode, 1, length - 1)
        assert segment["pixels"].shape == (length - 1, 3, 16, 16)
        expected = torch.tensor([grey(episode, t) for t in range(1, length)])[:, None, None, None]
        assert (segment["pixels"].int() - expected).abs().max() <= 3  # of the video's compression; frames are 8 apart
        assert segment["action"].tolist() == [[episode, t] for t in range(1, length)]
        assert segment["state"].tolist() == [[10 * episode + t] * 3 for t in range(1, length)]
        assert segment["next", "reward"].flatten().tolist() == [100 * episode + t for t in range(1, length)]
        assert segment["next", "success"].flatten().tolist() == [False] * (length - 2) + [True]


def test_frames_keep_the_size_of_their_middle_where_none_is_asked_for(tmp_path: Path) -> None:
    write_v3(tmp_path / "data", [3])
    assert EpisodeData(tmp_path / "data").segment(0, 0, 3)["pixels"].shape == (3, 3, 32, 32)


def test_an_episode_is_decoded_anew_where_its_description_changes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", [3])
    (table,) = (tmp_path / "data").rglob("*.parquet")
    columns = parquet.read_table(table).to_pydict()
    columns["observation.images.wrist"] = [{"bytes": None, "path": f"{frame}.png"} for frame in range(3)]
    parquet.write_table(pyarrow.table(columns), table)
    folder = tmp_path / "data" / "images" / "observation.images.wrist" / "episode_000000"
    folder.mkdir(parents=True)

    def write_wrist(level: int) -> None:
        for frame in range(3):
            pixels = np.full((32, 32, 3), level, np.uint8)
            (folder / f"{frame}.png").write_bytes(lerobot_files._png(pixels))

    def level() -> int:
        return int(EpisodeData(tmp_path / "data", resolution=16).segment(0, 0, 1)["pixels"].max())

    write_wrist(level=7)
    assert level() == grey(0, 0)
    info = tmp_path / "data" / "meta" / "info.json"
    described = json.loads(info.read_text())
    del described["features"][lerobot_files.CAMERA]
    info.write_text(json.dumps(described))
    assert level() == 7, "another camera of the same table"
    write_wrist(level=200)
    assert level() == 200, "another picture beside the table"


@pytest.mark.parametrize("torn", ["video", "parquet", "missing"])
def test_torn_episodes_are_left_out_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: str) -> None:
    folder = tmp_path / "data"
    write_v2(folder, LENGTHS)
    suffix = "parquet" if torn == "parquet" else "mp4"
    (path,) = folder.rglob(f"episode_000001.{suffix}")
    path.unlink() if torn == "missing" else path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        data = EpisodeData(folder, resolution=16)
    assert data.names == ["episode_000000", "episode_000002"]
    assert "left out 1 of 3 episodes" in caplog.text
    with pytest.raises(ValueError, match=r"episode_000001\.") as error:
        EpisodeData(folder, resolution=16, strict=True)
    assert "\n" not in str(error.value)


def test_a_video_that_is_too_short_is_named(tmp_path: Path) -> None:
    write_v3(tmp_path / "data", LENGTHS)
    (video,) = (tmp_path / "data").rglob("*.mp4")
    lerobot_files._write_video(video, lerobot_files.frames(0, 6))
    with pytest.raises(ValueError, match=r"file-000\.mp4: 1 frames of episode 1, not 3"):
        EpisodeData(tmp_path / "data", resolution=16, strict=True)


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v2(tmp_path / "data", [3])
    info_path = tmp_path / "data" / "meta" / "info.json"
    info = json.loads(info_path.read_text())
    for change, said in (
        ({"codebase_version": "v1.6"}, "layout v1.6 cannot be read"),
        ({"features": {}}, "no feature of dtype video or image"),
        ({"chunks_size": None}, "is no LeRobot data set that can be read"),
    ):
        info_path.write_text(json.dumps(info | change))
        with pytest.raises(ValueError, match=said):
            EpisodeData(tmp_path / "data")
    info_path.write_text("{")
    with pytest.raises(ValueError, match="is no LeRobot data set"):
        EpisodeData(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="install pyarrow"):
        EpisodeData(tmp_path / "data")
