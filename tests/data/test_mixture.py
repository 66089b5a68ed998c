"""Mixtures: a batch is a function of its number, ranks share one joint batch, and weights are kept."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader

from mbrl.data.augmentation import Augmentation
from mbrl.data.episodes import write_entries, write_episode
from mbrl.data.mixture import Mixture, loader
from tests.fakes import episode


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, float]:
    """Two folders of ten episodes each; the rewards say which frame it is, the pixels which folder."""
    for number, (name, steps) in enumerate((("low", 12), ("high", 7))):
        for index in range(10):
            records = episode(0, steps)
            records["pixels"] += torch.tensor(128 * number, dtype=torch.uint8)
            records["action"] += index
            write_episode(tmp_path / name / f"e{index}.safetensors", records)
    return {str(tmp_path / "low"): 3.0, str(tmp_path / "high"): 1.0}


def mixture(folders: dict[str, float], **changes: Any) -> Mixture:
    settings: dict[str, Any] = {"batch_size": 4, "segment_length": 5, "resolution": 8, "seed": 1}
    return Mixture(folders, **(settings | {"validation_share": 0.0} | changes))


def same(first: TensorDict, second: TensorDict) -> bool:
    keys = set(first.keys(True, True))
    return keys == set(second.keys(True, True)) and all(torch.equal(first[key], second[key]) for key in keys)


def test_a_batch_is_segments_with_what_all_folders_have(folders: dict[str, float], tmp_path: Path) -> None:
    data = mixture(folders)
    batch = data[3]
    assert batch.batch_size == (4, 5)
    assert batch["pixels"].shape == (4, 5, 3, 8, 8) and batch["pixels"].dtype == torch.uint8
    assert batch["action"].shape == (4, 5, 2) and batch["next", "reward"].shape == (4, 5, 1)
    assert (data.keys, data.action_dim) == (("action", "reward", "success"), 2)
    assert (batch["next", "reward"].diff(dim=1) == 1).all()  # frames in a row
    brightness = batch["pixels"][:, :, 0, 0, 0] % 128
    assert torch.equal(brightness, (batch["next", "reward"] - 1000).squeeze(-1).to(torch.uint8))
    write_entries(tmp_path / "video" / "v.safetensors", {"pixels": episode(0)["pixels"]})
    mixed = mixture(folders | {str(tmp_path / "video"): 1.0})
    assert (mixed.keys, mixed.action_dim) == ((), None)
    assert set(mixed[0].keys(True, True)) == {"pixels"}


def test_initial_frames_stand_beside_their_segments_and_are_augmented_as_these(folders: dict[str, float]) -> None:
    plain, batch = mixture(folders)[3], mixture(folders, initial=True)[3]
    assert same(plain, batch.exclude("initial"))
    assert batch["initial"].shape == batch["pixels"].shape
    shown, at_start = (batch[key][:, :, 0, 0, 0].long() for key in ("pixels", "initial"))
    assert (at_start % 128 == 0).all() and torch.equal(shown - at_start, plain["next", "reward"].squeeze(-1) - 1000)
    darker = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), brightness=(0.5, 0.5), contrast=(1.0, 1.0))
    changed = mixture(folders, initial=True, augment=replace(darker, saturation=(1.0, 1.0), hue=(0.0, 0.0)))[3]
    for key in ("pixels", "initial"):
        assert (changed[key].float() - batch[key] / 2).abs().max() <= 1, key


def test_a_batch_depends_on_seed_split_and_number_alone(folders: dict[str, float]) -> None:
    data = mixture(folders, augment=Augmentation())
    third = data[3]
    torch.manual_seed(7)  # nor on what was drawn before
    data[0]
    assert same(mixture(folders, augment=Augmentation())[3], third)
    others = [data[4], mixture(folders, seed=2, augment=Augmentation())[3]]
    assert not any(same(other, third) for other in others)
    assert not torch.equal(mixture(folders)[3]["pixels"], third["pixels"])
    assert torch.equal(mixture(folders)[3]["action"], third["action"])


def test_ranks_share_the_joint_batch(folders: dict[str, float]) -> None:
    joint = mixture(folders, batch_size=6, augment=Augmentation())[2]
    ranks = [mixture(folders, batch_size=2, rank=r, world_size=3, augment=Augmentation())[2] for r in range(3)]
    assert same(torch.cat(ranks), joint)


def test_segments_are_uniform_within_a_folder_and_folders_by_weight(folders: dict[str, float]) -> None:
    data = mixture(folders, batch_size=500)
    batch = torch.cat([data[index] for index in range(4)])
    low = batch["pixels"][:, 0, 0, 0, 0] < 128
    assert 0.70 < low.float().mean() < 0.80  # of 2000, σ is 0.01
    for part, places in ((batch[low], 10 * 9), (batch[~low], 10 * 4)):
        first = zip(part["action"][:, 0, 0].tolist(), part["next", "reward"][:, 0, 0].tolist(), strict=True)
        counts = Counter(first)
        assert len(counts) == places  # every segment there is, and none oftener than chance has it
        assert max(counts.values()) < len(part) / places + 5 * (len(part) / places) ** 0.5


def test_splits_are_disjoint_and_stay_as_data_grow(folders: dict[str, float]) -> None:
    one = dict(list(folders.items())[:1])
    (folder,) = one

    def members(split: str) -> set[float]:
        batch = mixture(one, batch_size=400, split=split, validation_share=0.3)[0]
        return set(batch["action"][:, 0, 0].tolist())

    train, validation = members("train"), members("validation")
    assert train | validation == set(range(10)) and not train & validation and validation
    for index in range(10, 40):
        records = episode(0)
        records["action"] += index
        write_episode(Path(folder) / f"e{index}.safetensors", records)
    assert {index for index in members("train") if index < 10} == train
    assert {index for index in members("validation") if index < 10} == validation
    assert 0.15 < len(members("validation")) / 40 < 0.45


def test_the_name_of_an_episode_need_not_be_text(folders: dict[str, float]) -> None:
    low, _ = folders
    np.savez(Path(low) / os.fsdecode(b"\xff.npz"), image=np.zeros((12, 8, 8, 3), np.uint8))
    assert mixture(folders).episodes[low] == 11


@pytest.mark.process
def test_workers_change_nothing(folders: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    def from_server(*given: Any, **options: Any) -> DataLoader[TensorDict]:  # in a tenth of the time of "spawn"
        context = "forkserver" if options["num_workers"] else None
        return DataLoader(*given, **options | {"multiprocessing_context": context})

    monkeypatch.setattr("mbrl.data.mixture.DataLoader", from_server)
    data = mixture(folders, augment=Augmentation())
    plain = list(loader(data, 3, 7))
    assert all(same(batch, data[3 + index]) for index, batch in enumerate(plain))
    batches = list(loader(data, 3, 7, workers=2))
    assert len(batches) == 4 and all(isinstance(batch, TensorDict) for batch in batches)
    assert all(same(batch, data[3 + index]) for index, batch in enumerate(batches))


def test_episodes_that_are_too_short_are_left_out_or_refused(
    folders: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    low, _ = folders
    write_episode(Path(low) / "short.safetensors", episode(0, 3))
    with caplog.at_level(logging.WARNING):
        assert mixture(folders).episodes == dict.fromkeys(folders, 10)
    assert "1 of 11 train episodes" in caplog.text and "less than 5 frames" in caplog.text
    with pytest.raises(ValueError, match="1 of 11 train episodes"):
        mixture(folders, strict=True)
    with pytest.raises(ValueError, match=r"high have less than 9 frames \(the longest of all has 8\)"):
        mixture(folders, segment_length=9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"world_size": 2, "rank": 2}, "rank is 2"),
        ({"split": "validation", "validation_share": 1e-9}, "falls into the validation split"),
    ],
)
def test_impossible_settings_are_one_line(folders: dict[str, float], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        mixture(folders, **changes)
    assert "\n" not in str(error.value)


def test_folders_that_cannot_be_mixed(folders: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one folder"):
        mixture({})
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            mixture(dict.fromkeys(folders, weight))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        mixture(folders | {str(tmp_path / "nowhere"): 1.0})
    wide = episode(0)
    wide["action"] = torch.zeros(13, 3)
    write_episode(tmp_path / "wide" / "a.safetensors", wide)
    with pytest.raises(ValueError, match=r"an action has 2 numbers in .*low and 3 in .*wide"):
        mixture(folders | {str(tmp_path / "wide"): 1.0})


def test_states_of_different_widths_are_left_out(tmp_path: Path) -> None:
    for name, width in (("a", 3), ("b", 4)):
        records = episode(0)
        records["state"] = torch.zeros(13, width)
        write_episode(tmp_path / name / "a.safetensors", records)
    both = {str(tmp_path / name): 1.0 for name in ("a", "b")}
    assert "state" not in mixture(both).keys
    assert "state" in mixture({str(tmp_path / "a"): 1.0})[0].keys()
