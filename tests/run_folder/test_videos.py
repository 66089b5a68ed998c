"""Videos are written whole, or the one that was there stays."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import pytest
import torch
from tensordict import TensorDict

from mbrl.errors import UserError
from mbrl.run_folder import videos
from mbrl.run_folder.videos import imagine_along, require_video_name, write_video
from tests.fakes import CountingWorldModel, episode

FRAMES = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["film.mp4", "film.gif", "film.MP4", "film.GIF"])
def test_a_video_has_its_frames(tmp_path, name):
    write_video(tmp_path / "new" / name, FRAMES)
    assert len(list(iio.imiter(tmp_path / "new" / name))) == len(FRAMES)
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("name", ["film", "film.webm", "gif"])
def test_another_suffix_is_no_videos(name):
    with pytest.raises(UserError, match=rf"to runs/{name}: its name must end in \.gif or \.mp4"):
        require_video_name(Path("runs", name))


def cut_short(path, images, **options):
    path.write_bytes(b"torn")


def fails(path, images, **options):
    raise OSError("[Errno 32] Broken pipe, FFMPEG COMMAND: ...")


@pytest.mark.parametrize(("free", "code"), [(0, errno.ENOSPC), (2**40, errno.EIO)])
@pytest.mark.parametrize("write", [cut_short, fails])
def test_a_video_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, write, free, code):
    film = tmp_path / "film.mp4"
    film.write_text("good")
    monkeypatch.setattr(videos.iio, "imwrite", write)
    monkeypatch.setattr(videos.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_video(film, FRAMES)
    assert caught.value.errno == code and caught.value.filename == str(film)
    assert film.read_text() == "good" and len(list(tmp_path.iterdir())) == 1


class Summing(CountingWorldModel):
    """A frame is its predecessor plus the action. Counts its steps."""

    steps = 0

    def step(self, state, action):
        self.steps += 1
        pixels = state + action[:, :1, None, None].to(torch.uint8)
        return pixels, TensorDict(pixels=pixels, batch_size=[len(action)])


def test_an_episode_is_imagined_from_all_of_its_contexts_at_once():
    model, real = Summing(), episode(1)  # frames 10, 11, ..., 22
    real["action"] += torch.arange(len(real))[:, None]  # action t is t
    frames, imagined, marks = imagine_along(model, real, 3)
    assert torch.equal(frames, real["pixels"][:10]) and model.steps == 3
    assert imagined[:, 0, 0, 0].tolist() == [10, 11, 11 + 1, 12 + 2, 14 + 3, 15, 16, 16 + 6, 22 + 7, 29 + 8]
    assert marks.tolist() == [False, False, True, True, True] * 2
    with pytest.raises(UserError, match="an episode of 4 steps is too short for 2 context frames and a horizon of 3"):
        imagine_along(model, real[:4], 3)
