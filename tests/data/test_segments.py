"""A folder of episodes: its index, random access to segments, and what becomes of bad files."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tensordict import TensorDict

from mbrl.data import reading
from mbrl.data.episodes import to_records, write_episode
from mbrl.data.frames import crop_and_resize
from mbrl.data.segments import EpisodeData
from mbrl.envs.toy import make_env
from tests.fakes import episode
from tests.shared_data import SHARED_DATA

SAMPLES = SHARED_DATA / "video-samples"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mbrl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Own episodes of 13 and 6 records at two depths; frame t of episode e is e * 10 + t bright."""
    write_episode(tmp_path / "data" / "reach" / "random-00000.safetensors", episode(2, 5))
    write_episode(tmp_path / "data" / "b.safetensors", episode(1))
    return tmp_path / "data"


def video(path: Path, length: int = 6, size: tuple[int, int] = (8, 12), actions: bool = True) -> Path:
    """An .npz in the pretraining layout; frame t is 10 * t bright, its left and right edges are white."""
    image = np.zeros((length, *size, 3), np.uint8) + 10 * np.arange(length, dtype=np.uint8)[:, None, None, None]
    image[:, :, :2] = image[:, :, -2:] = 255
    entries = {"action": np.arange(length, dtype=np.float32)[:, None]} if actions else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, image=image, **entries)  # type: ignore[arg-type]
    return path


def test_own_episodes_are_found_at_any_depth(folder: Path) -> None:
    data = EpisodeData(folder)
    assert data.names == ["b", "reach/random-00000"]
    assert list(data.lengths) == [13, 6] and len(data) == 2
    assert (data.keys, data.action_dim) == (("action", "reward", "success"), 2)


def test_a_segment_is_aligned_as_in_the_replay(tmp_path: Path) -> None:
    rollout = make_env(resolution=8, episode_length=6).rollout(100)
    write_episode(tmp_path / "data" / "a.safetensors", to_records(rollout))
    segment = EpisodeData(tmp_path / "data").segment(0, 2, 4)
    assert segment.batch_size == (4,)
    for key in ("pixels", "state", "action", ("next", "reward"), ("next", "success")):
        assert torch.equal(segment[key], rollout[key][2:6]), key
    assert set(EpisodeData(tmp_path / "data").segment(0, 2, 4, ["action"]).keys()) == {"pixels", "action"}


def test_segments_lie_within_their_episode(folder: Path) -> None:
    data = EpisodeData(folder)
    assert data.segment(1, 0, 6)["pixels"][:, 0, 0, 0].tolist() == list(range(20, 26))
    for start, length in ((-1, 3), (1, 6), (0, 0)):
        with pytest.raises(ValueError, match="reach/random-00000 has 6 frames"):
            data.segment(1, start, length)


def test_videos_are_cropped_resized_and_decoded_once(tmp_path: Path, cache: Path) -> None:
    path = video(tmp_path / "data" / "deep" / "a.npz")
    data = EpisodeData(tmp_path / "data", resolution=4)
    segment = data.segment(0, 1, 3)
    assert (data.names, list(data.lengths), data.keys, data.action_dim) == (["deep/a"], [6], ("action",), 1)
    assert segment["pixels"].shape == (3, 3, 4, 4)
    assert (segment["pixels"] == torch.tensor([10, 20, 30])[:, None, None, None]).all()  # the white edges are cropped
    assert segment["action"].flatten().tolist() == [1, 2, 3]
    (decoded,) = cache.rglob("*.safetensors")
    written = decoded.stat().st_mtime_ns
    EpisodeData(tmp_path / "data", resolution=4)
    assert [file.stat().st_mtime_ns for file in cache.rglob("*.safetensors")] == [written]
    video(path, length=9)  # a changed file is another one
    assert list(EpisodeData(tmp_path / "data", resolution=4).lengths) == [9]


def test_own_episodes_of_another_size_are_resized(folder: Path) -> None:
    segment = EpisodeData(folder, resolution=4).segment(0, 3, 2)
    assert segment["pixels"].shape == (2, 3, 4, 4)
    assert segment["pixels"][:, 0, 0, 0].tolist() == [13, 14]


def test_a_folder_may_mix_layouts_and_keeps_what_all_have(folder: Path) -> None:
    video(folder / "c.npz", actions=False)
    data = EpisodeData(folder, resolution=8)
    assert data.names == ["b", "c", "reach/random-00000"]
    assert (data.keys, data.action_dim) == ((), None)
    assert set(data.segment(0, 0, 2).keys()) == {"pixels"}


def spoil(folder: Path) -> int:
    """Adds bad files of each kind; how many."""
    good = folder / "b.safetensors"
    (folder / "torn.safetensors").write_bytes(good.read_bytes()[:-50])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.npz").write_bytes(b"")
    whole = video(folder / "torn.npz").read_bytes()
    (folder / "torn.npz").write_bytes(whole[:-30])
    video(folder / "short.npz", length=1)
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    bad = episode(3)
    bad["reward"][2] = float("nan")
    save_file({key: value.contiguous() for key, value in bad.items()}, folder / "nan.safetensors")
    return 7


def test_bad_files_are_left_out_with_one_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = spoil(folder)
    (folder / ".b.safetensors.123").write_bytes(b"half-written")  # what a kill leaves is not even counted
    with caplog.at_level(logging.WARNING):
        data = EpisodeData(folder, resolution=8)
    assert data.names == ["b", "reach/random-00000"]
    assert len(caplog.records) == 1
    assert f"left out {bad} of {bad + 2} episodes" in caplog.text


def test_each_kind_of_bad_file_is_refused_when_asked(folder: Path) -> None:
    before = set(folder.iterdir())
    spoil(folder)
    for path in set(folder.iterdir()) - before:
        alone = folder.parent / "alone" / path.name
        alone.parent.mkdir(exist_ok=True)
        shutil.move(path, alone)
        with pytest.raises(ValueError) as error:
            EpisodeData(alone.parent, resolution=8, strict=True)
        with pytest.raises(FileNotFoundError, match="none of its 1 episodes can be read"):
            EpisodeData(alone.parent, resolution=8)
        assert "\n" not in str(error.value)
        alone.unlink()


def test_folders_without_episodes_and_widths_that_differ(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        EpisodeData(tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no episodes"):
        EpisodeData(tmp_path / "void")
    wide = episode(5)
    wide["action"] = torch.zeros(13, 3)
    write_episode(folder / "wide.safetensors", wide)
    with pytest.raises(ValueError, match="action has 2 and 3 numbers"):
        EpisodeData(folder)


def test_a_file_that_is_torn_later_is_named(folder: Path) -> None:
    data = EpisodeData(folder)
    (folder / "b.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.safetensors: torn"):
        data.segment(0, 0, 2)


def test_a_decoded_episode_that_was_cut_is_decoded_anew(tmp_path: Path, cache: Path) -> None:
    video(tmp_path / "data" / "a.npz")
    EpisodeData(tmp_path / "data", resolution=4)
    (decoded,) = cache.rglob("*.safetensors")
    decoded.write_bytes(decoded.read_bytes()[:-9])
    assert EpisodeData(tmp_path / "data", resolution=4, strict=True).lengths == [6]


def test_links_are_followed_once_and_hidden_folders_are_not_read(folder: Path, tmp_path: Path) -> None:
    write_episode(tmp_path / "elsewhere" / "c.safetensors", episode(3))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "d.safetensors").symlink_to(tmp_path / "elsewhere" / "c.safetensors")
    (folder / "again").symlink_to(folder)
    for hidden in (".ipynb_checkpoints", ".trash"):
        write_episode(folder / hidden / "e.safetensors", episode(4))
    assert EpisodeData(folder, strict=True).names == ["b", "d", "linked/c", "reach/random-00000"]
    (tmp_path / "to-data").symlink_to(folder)
    assert len(EpisodeData(tmp_path / "to-data")) == 4


def test_what_is_left_out_is_named_by_its_own_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video(tmp_path / "data" / "a.npz")
    np.savez(tmp_path / "data" / "b.npz", image=np.zeros((4, 8, 8, 3), np.uint8), action=np.full((4, 1), 1e300))
    with caplog.at_level(logging.WARNING):
        EpisodeData(tmp_path / "data", resolution=8)
    assert "left out 1 of 2 episodes" in caplog.text and f"{tmp_path}/data/b.npz: action holds NaN" in caplog.text


def test_arrays_that_do_not_fit_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video(tmp_path / "data" / "a.npz", length=100, size=(64, 64))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was unpacked"))
    for name, text in {"memory.max": 2**29, "memory.current": 2**29 - 2**20, "memory.stat": "anon 0"}.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr("mbrl.settings.memory.GROUP", tmp_path)  # a container, whose limit /proc/meminfo does not know
    with pytest.raises(ValueError, match=r"a\.npz: image takes 0\.0 GiB of memory, and 0\.0 GiB are free"):
        EpisodeData(tmp_path / "data", strict=True)
    monkeypatch.setattr(reading, "LARGE", 2**20)
    with pytest.raises(ValueError, match=r"a\.npz: image unpacks from \d+ bytes to 0\.0 GiB"):
        EpisodeData(tmp_path / "data", strict=True)


def test_frames_that_fit_are_handed_back_and_others_are_averaged() -> None:
    frames = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(crop_and_resize(frames, 8), frames) and torch.equal(crop_and_resize(frames, None), frames)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 200
    small = crop_and_resize(checks.to(torch.uint8).expand(1, 3, 8, 8), 4)[..., 1:-1, 1:-1]
    assert ((small.int() - 100).abs() <= 20).all()  # antialiased: without, every pixel would be 0 or 200
    assert crop_and_resize(frames[..., :5], None).shape == (2, 3, 5, 5)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no ../shared/data/video-samples beside this checkout")
def test_a_real_robot_video_reads() -> None:
    data = EpisodeData(SAMPLES, resolution=64)
    segment: TensorDict = data.segment(0, 0, 22)
    assert (list(data.lengths), data.action_dim) == ([22], None)
    assert segment["pixels"].shape == (22, 3, 64, 64)
    original = np.load(SAMPLES / "fractal_sample.npz")["image"][:, :, 32:288]
    assert np.allclose(segment["pixels"].float().mean((1, 2, 3)), original.mean((1, 2, 3)), atol=1)
