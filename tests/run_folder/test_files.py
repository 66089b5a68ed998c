"""Files are written whole or not at all, and their content is what the libraries of their formats write."""

import errno
import hashlib
import os

import pytest
import torch
from safetensors.torch import load, save

from mbrl.run_folder.files import (
    BLOCK_BYTES,
    HOST,
    remove_leftovers,
    replacing,
    require_regular_files,
    write_atomically,
    write_new,
)
from mbrl.run_folder.tensors import read_tensors, tensor_chunks

TENSORS = {
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([[True, False]]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "long": torch.arange(5),
    "half": torch.arange(3, dtype=torch.bfloat16),
    "turned": torch.arange(6.0).view(2, 3).T,
    "channels-last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "double": torch.rand(2, dtype=torch.float64),
}


def test_tensors_are_written_as_the_library_writes_them(tmp_path):
    content = b"".join(bytes(chunk) for chunk in tensor_chunks(TENSORS, {"about": '{"a": 1}'}))
    assert content == save({key: value.contiguous() for key, value in TENSORS.items()}, {"about": '{"a": 1}'})
    read = load(content)
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in TENSORS.items())


def test_what_is_torn_is_no_safetensors_file(tmp_path):
    write_atomically(tmp_path / "a.safetensors", tensor_chunks(TENSORS))
    os.truncate(tmp_path / "a.safetensors", 300)
    with pytest.raises(ValueError, match=r"a\.safetensors is no whole safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [1, 2, 3], [BLOCK_BYTES], [5, BLOCK_BYTES, 7], [BLOCK_BYTES - 1, BLOCK_BYTES - 1, BLOCK_BYTES + 1, 1]],
)
def test_size_and_checksum_are_those_of_the_content(tmp_path, sizes):
    chunks = [os.urandom(size) for size in sizes]
    size, digest = write_new(tmp_path / "file", chunks)
    content = (tmp_path / "file").read_bytes()
    assert content == b"".join(chunks)
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())


def test_writes_that_the_system_cuts_short_go_on(tmp_path, monkeypatch):
    written = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: written(descriptor, bytes(data)[:10]))
    write_new(tmp_path / "file", [b"0123456789" * 3 + b"end"])
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 3 + b"end"


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    write_atomically(tmp_path / "new" / "file", "before")

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "new" / "file", "after")
    assert caught.value.filename == str(tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_text() == "before"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_writer_that_needs_a_path_replaces_the_file_or_leaves_it(tmp_path):
    file = tmp_path / "new" / "film.mp4"
    with replacing(file, ".mp4") as partial:
        assert partial.suffix == ".mp4" and not file.exists()
        partial.write_text("before")
    with pytest.raises(OSError, match="No space left") as caught, replacing(file, ".mp4") as partial:
        partial.write_text("aft")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))
    assert caught.value.filename == str(file)
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("aft")
        raise KeyboardInterrupt
    assert file.read_text() == "before" and [path.name for path in file.parent.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe"])
def test_what_is_no_file_is_refused_by_name(tmp_path, kind):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "checkpoints").mkdir(parents=True)
    (run / "wandb").mkdir()
    (run / "wandb" / "latest").symlink_to(elsewhere)  # Weights & Biases keeps links in its own folder
    require_regular_files(run)
    require_regular_files(tmp_path / "absent")
    place = run / "checkpoints" / "odd"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        elsewhere.mkdir()
        place.symlink_to(elsewhere if kind == "link to a folder" else elsewhere / "absent")
    with pytest.raises(ValueError, match=f"odd is {'no file' if kind == 'pipe' else 'a link'}: a run folder may hold"):
        require_regular_files(run)


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    kept = [f".a.{HOST}-{os.getpid()}-1.partial", "a.partial", ".hidden", ".b.partial"]
    kept += [f".a.{process}-1.partial", f".a.another-{process}-1.partial"]  # of another machine, maybe
    old = [f".b.{process}-1.partial", f".b.another-{process}-1.partial.png"]
    for name in (*kept, f".a.{HOST}-{process}-1.partial", f".a.mp4.{HOST}-{process}-1.partial.mp4"):
        (tmp_path / name).touch()
    for name in old:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
