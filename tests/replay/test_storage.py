"""The replay's files: opened by the table that the program knows, and checked before they are used."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from mbrl.replay.episode_buffer import EpisodeBuffer
from mbrl.replay.storage import MemoryMaps
from mbrl.run_folder.checkpoint import DamagedFile
from mbrl.run_folder.schema import SchemaError, TensorType, require
from tests.replay.test_replay import FIELDS, fill, records


def saved(folder, lengths=(6, 6)):
    buffer = EpisodeBuffer(30, directory=folder, fields=FIELDS)
    fill(buffer, list(lengths))
    return buffer.state_dict()


def again(folder):
    return EpisodeBuffer(30, directory=folder, fields=FIELDS)


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("key", FIELDS)
def test_one_flipped_bit_is_found_in_every_field(tmp_path, key):
    state = saved(tmp_path)
    flip(tmp_path / f"{key}.memmap", -1)  # in the ring's free part
    again(tmp_path).load_state_dict(state)
    flip(tmp_path / f"{key}.memmap", 0)
    with pytest.raises(DamagedFile, match="the replay's records 0 to 6 are altered"):
        again(tmp_path).load_state_dict(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), r"the replay's pixels\.memmap is missing"),
        (lambda file: os.truncate(file, 10), r"pixels\.memmap has 10 bytes instead of 360"),
        (lambda file: (file.rename(file.with_name("x")), file.symlink_to("x")), r"pixels\.memmap is missing"),
    ],
)
def test_files_that_are_not_as_they_were_made_are_refused(tmp_path, damage, message):
    state = saved(tmp_path)
    damage(tmp_path / "pixels.memmap")
    buffer = again(tmp_path)
    with pytest.raises(DamagedFile, match=message):
        buffer.load_state_dict(state)
    assert buffer.head == 0 and not buffer.episodes, "nothing was changed"


def test_episodes_around_the_rings_end_are_checked_too(tmp_path):
    state = saved(tmp_path, [6] * 5)
    again(tmp_path).load_state_dict(state)
    flip(tmp_path / "state.memmap", 0)  # of the last episode, which goes on at the ring's begin
    with pytest.raises(DamagedFile, match="records 28 to 34"):
        again(tmp_path).load_state_dict(state)


@pytest.mark.parametrize(
    "row",
    [
        [0, 7, 7, 0], [-1, 7, 0, 0], [10, 7, 0, 0], [0, 0, 0, 0], [0, 7, -1, 0], [0, 2**62, 0, 0],
        [2**63 - 2, 2**62, 0, 0],
    ],
)  # fmt: skip
def test_tables_that_refer_to_nothing_are_refused(tmp_path, row):
    state = {**saved(tmp_path), "episodes": torch.tensor([row])}
    with pytest.raises(SchemaError, match="refers to records outside"):
        again(tmp_path).load_state_dict(state)


def test_a_smaller_size_is_refused(tmp_path):
    state = saved(tmp_path)
    with pytest.raises(SchemaError, match="held 30 records, and this configuration's holds 20"):
        EpisodeBuffer(20, directory=tmp_path, fields=FIELDS).load_state_dict(state)


@pytest.mark.parametrize("where", ["files", "memory"])
def test_a_larger_one_goes_on_as_if_it_had_been_as_large(tmp_path, where):
    def made(size, name):
        return EpisodeBuffer(size, directory=tmp_path / name if where == "files" else None, fields=FIELDS)

    def drawn(buffer):
        torch.manual_seed(0)
        return buffer.sequences(8, 3)

    ours, whole = made(30, "ours"), made(60, "whole")
    for buffer in (ours, whole):
        fill(buffer, [6, 6])
    if where == "files":  # a start that was killed left one of another length
        os.truncate(tmp_path / "ours" / "state.memmap", 45 * 4)
    state = {name: value.clone() if name == "episodes" else value for name, value in ours.state_dict().items()}
    again = made(60, "ours")
    require(state, again.schema(), "replay")
    again.load_state_dict(state)
    again.load_state_dict(again.state_dict())  # the files have room by now
    for buffer in (again, whole):
        fill(buffer, [6] * 5)
    assert [episode.start for episode in again.episodes] == [7 * number for number in range(7)]
    assert (drawn(again) == drawn(whole)).all()


def test_a_larger_one_is_refused_once_the_first_records_are_replaced(tmp_path):
    state = saved(tmp_path, [6] * 5)
    with pytest.raises(SchemaError, match="held 30 records, and this configuration's holds 40"):
        EpisodeBuffer(40, directory=tmp_path, fields=FIELDS).load_state_dict(state)


@pytest.mark.parametrize(("lengths", "read_only"), [([6] * 5, False), ([6] * 5, True), ([6, 6], True)])
def test_a_ring_of_less_reserve_keeps_its_size(tmp_path, lengths, read_only):
    """Once it came around, and where its files are only read."""
    state = saved(tmp_path, lengths)
    ours = EpisodeBuffer(30, reserve=10, directory=tmp_path, fields=FIELDS, read_only=read_only)
    ours.load_state_dict(state)
    assert ours.size == 30 and len(ours) == 6 * min(len(lengths), 4)
    assert (tmp_path / "state.memmap").stat().st_size == 30 * 4
    if not read_only:
        fill(ours, [6, 6])
        again(tmp_path).load_state_dict(ours.state_dict())


def test_records_of_another_kind_are_refused(tmp_path):
    buffer = EpisodeBuffer(30, directory=tmp_path, fields={**FIELDS, "state": TensorType(torch.float32, (2,))})
    with pytest.raises(SchemaError, match=r"a record/state is float32 \[1\], not float32 \[2\]"):
        buffer.extend(records(0, 6)[None])
    with pytest.raises(ValueError, match="memory maps need the fields"):
        EpisodeBuffer(30, directory=tmp_path)


def test_a_state_is_held_against_what_a_record_holds():
    buffer = EpisodeBuffer(30, fields=FIELDS)
    fill(buffer, [6])
    state = buffer.state_dict()
    require(state, EpisodeBuffer(30, fields=FIELDS).schema(), "imagination")
    state["data"]["code"] = torch.zeros(30, 1)
    with pytest.raises(SchemaError, match="imagination/data has an unknown entry 'code'"):
        require(state, EpisodeBuffer(30, fields=FIELDS).schema(), "imagination")


def test_room_is_asked_for_before_it_is_taken(tmp_path, monkeypatch, caplog):
    maps = MemoryMaps(tmp_path / "replay", 1000, {"pixels": TensorType(torch.uint8, (3, 64, 64))})
    with caplog.at_level("INFO"):
        maps.require_disk_space()
    assert "the replay takes 11.7 MiB in" in caplog.text and not (tmp_path / "replay").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(ValueError, match=r"needs 11\.7 MiB .* the disk has 0\.0 MiB: lower replay\.capacity"):
        maps.require_disk_space()


def test_a_full_disk_leaves_no_files(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        again(tmp_path).extend(records(0, 6)[None])
    assert not list(tmp_path.iterdir())
