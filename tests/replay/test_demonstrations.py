"""Demonstrations in a folder: what does not fit together, and what a file says about itself, is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

from mbrl.build import build_policy, build_replay
from mbrl.compose import composed
from mbrl.data.episodes import METADATA_KEY, write_episode
from mbrl.envs.toy import make_env
from mbrl.errors import UserError
from mbrl.replay.demonstrations import read_demonstrations
from tests.fakes import episode

ABOUT = {"task": "reach", "action_repeat": 2}


def wide(records: TensorDict) -> TensorDict:
    return records.update({"action": torch.zeros(len(records), 3)})


def small(records: TensorDict) -> TensorDict:
    return records.update({"pixels": records["pixels"][..., :4, :4].contiguous()})


def stateful(records: TensorDict) -> TensorDict:
    return records.update({"state": torch.zeros(len(records), 5)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wide, r"action is \[2\] in .*a\.safetensors and \[3\] in .*b\.safetensors"),
        (small, r"pixels is \[3, 8, 8\] .* and \[3, 4, 4\]"),
        (stateful, r"state is absent .* and \[5\]"),
    ],
)
def test_episodes_that_differ_are_refused(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    write_episode(tmp_path / "a.safetensors", episode(0), ABOUT)
    write_episode(tmp_path / "b.safetensors", change(episode(1)), ABOUT)
    with pytest.raises(UserError, match=said):
        read_demonstrations(tmp_path, task="reach", action_repeat=2)


def test_an_environment_whose_images_have_no_view_takes_any(tmp_path: Path) -> None:
    records = episode(0).update({"state": torch.zeros(13, 4)})
    write_episode(tmp_path / "a.safetensors", records, {"task": "walker-walk", "action_repeat": 2})
    demos = [f"replay.demos={tmp_path}", "replay.demo_share=0.5"]
    config = composed(["env=dmc", "env.pixels=true", "agent=sac", *demos])
    env = make_env(resolution=8)
    replay = build_replay(config, None, env, build_policy(config, env))
    assert replay.demos is not None and len(replay.demos) == 12


def test_stacked_frames_are_refused(tmp_path: Path) -> None:
    """Frames of another frame stack in the place of single ones."""
    records = episode(0)
    stacked = {**records.to_dict(), "pixels": records["pixels"].repeat(1, 3, 1, 1)}
    save_file(stacked, tmp_path / "a.safetensors", {METADATA_KEY: json.dumps(ABOUT)})
    said = r"a\.safetensors: pixels cannot be uint8 \[13, 9, 8, 8\] .*: give single square frames .* env\.frame_stack"
    with pytest.raises(UserError, match=said) as error:
        read_demonstrations(tmp_path, task="reach", action_repeat=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[1]", "7", "null", "{", "[" * 900 + "]" * 900, '"' + "x" * 99])
def test_what_a_file_says_about_itself_is_an_object(tmp_path: Path, text: str) -> None:
    write_episode(tmp_path / "a.safetensors", episode(0), ABOUT)
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {METADATA_KEY: text})
    with pytest.raises(UserError, match=r"b\.safetensors: what it says about itself is") as error:
        read_demonstrations(tmp_path, task="reach", action_repeat=2)
    assert "\n" not in str(error.value)
