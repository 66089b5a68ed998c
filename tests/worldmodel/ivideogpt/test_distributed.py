"""Two processes that train on halves of a batch: their codebooks, backgrounds and precision are one."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from tests.worldmodel.ivideogpt.test_model import tokenizer
from worldmodel.ivideogpt import precision
from worldmodel.ivideogpt.tokenizer.quantizer import VectorQuantizer
from worldmodel.ivideogpt.tokenizer.settings import MovingAverage

pytestmark = pytest.mark.process

ROWS, CODES, DIM, BATCHES = 64, 8, 3, 5


def latents(number: int) -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(number))


def quantizer(**options: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    made = VectorQuantizer(CODES, DIM, moving_average=MovingAverage(decay=0.5, **options))
    made.load_state_dict({"embedding.weight": latents(99)[:CODES]})  # as if each code had been used
    return made


def train(rank: int, processes: int) -> dict[str, Tensor]:
    """A codebook without and one with revival and a background after a few batches, and the precision `auto`."""
    plain, revived, watching = quantizer(), quantizer(revive_below=0.9), tokenizer()
    watching.background_batches = 3
    watching.register_buffer("background", torch.zeros(3, 16, 16))
    watching.register_buffer("background_seen", torch.zeros((), dtype=torch.int64))
    torch.manual_seed(rank)  # each process draws its own seeds for dead codes
    for number in range(BATCHES):
        rows = latents(number).chunk(processes)[rank]
        plain(rows)
        revived(rows)
        frames = rows.sigmoid().mean(1)[:, None, None, None, None].expand(-1, 1, 3, 16, 16)
        watching.watch_background(frames)
    state = {f"plain.{name}": value for name, value in plain.state_dict().items()}
    state |= {f"revived.{name}": value for name, value in revived.state_dict().items()}
    with mock.patch.object(precision, "computes_bfloat16", lambda _: rank == 0):
        half = precision.Precision("auto").dtype(torch.device("cpu")) == torch.bfloat16
    return {**state, "background": watching.background, "bfloat16": torch.tensor(half)}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(train(rank, 2), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_codebooks_backgrounds_and_precision_stay_one(tmp_path: Path) -> None:
    multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    joint = train(0, 1)
    for name in ("plain.embedding.weight", "plain.usage", "plain.sums", "background"):
        torch.testing.assert_close(first[name], joint[name])
