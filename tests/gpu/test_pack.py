"""What pack.sh packs for a machine without network is all that this project needs there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.gpu import textures

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "tests" / "gpu" / "pack.sh").read_text()


def test_every_dependency_is_packed_or_named_as_there_or_left_out() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {re.split("[=<>]", given)[0].lower() for given in settings["project"]["dependencies"]}
    known = set(re.findall(r"[a-z0-9_-]+", SCRIPT.lower()))
    assert {name.replace("_", "-") for name in needed} <= {name.replace("_", "-") for name in known}


def test_textures_come_back_pixel_by_pixel(tmp_path: Path) -> None:
    clear = np.random.default_rng(0).integers(0, 256, (256, 512, 4), np.uint8)
    clear[..., 1] = clear[..., 0]  # so that WebP is smaller
    opaque = clear | np.array([0, 0, 0, 255], np.uint8)
    pictures = {"plain": clear[..., :3], "clear": clear, "opaque": opaque, "grey": clear[..., 0], "small": clear[:4]}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", compress_level=0, icc_profile=b"profile")
    before = {file: file.stat().st_size for file in tmp_path.iterdir()}
    textures.shrink(tmp_path)
    smaller = {file.stem for file, size in before.items() if file.stat().st_size < 0.8 * size}
    assert smaller == {"plain", "clear", "opaque"}
    textures.restore(tmp_path)
    for name, pixels in pictures.items():
        image = Image.open(tmp_path / f"{name}.png")
        assert image.info["icc_profile"] == b"profile"
        assert np.asarray(image).shape == pixels.shape and (np.asarray(image) == pixels).all()


@pytest.mark.slow  # 6 s, and pack.sh is run by hand
def test_no_command_for_that_machine_needs_what_is_left_out() -> None:
    left_out = ("imageio_ffmpeg", "rliable", "arch", "dm_control", "aiohttp")
    modules = "mbrl.training, mbrl.pretraining.pretrain, mbrl.collecting.collect, mbrl.bench.gpu, mbrl.cli.main"
    code = f"import sys; sys.modules.update(dict.fromkeys({left_out})); import {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
