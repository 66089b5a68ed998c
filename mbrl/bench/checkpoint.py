"""Saving and loading a checkpoint, compared with torch.save and torch.load and with a lower bound."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mbrl.bench import Row
from mbrl.bench._machine import median_seconds, row
from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.parts import ModulePart, OptimizersPart, Part, RandomStates, ValuesPart
from mbrl.run_folder.paths import checkpoint_folders

LAYERS, WIDTH = 40, 512  # 10.5 million parameters; with Adam's moments, as many bytes as a checkpoint of mbpo_ivideogpt
REPEATS = 7


def run() -> Iterator[Row]:
    """Seconds to save and to load, and ratios to torch.save and torch.load of the same state, flushed to the disk."""
    network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, WIDTH)).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as temporary:
        folder, file, raw = Path(temporary), Path(temporary, "state.pt"), Path(temporary, "raw")
        parts: dict[str, Part] = {
            "policy": ModulePart(network),
            "optimizers": OptimizersPart({"policy": optimizer}),
            "progress": ValuesPart({"env_steps": 0}),
            "random": RandomStates(),
        }
        checkpoints = Checkpoints(folder / "checkpoints", parts)

        def torch_save() -> None:
            with file.open("wb") as stream:
                torch.save([network.state_dict(), optimizer.state_dict()], stream)
                os.fsync(stream.fileno())

        def torch_load() -> None:
            weights, moments = torch.load(file, weights_only=True)
            network.load_state_dict(weights)
            optimizer.load_state_dict(moments)

        def minimal_write() -> None:
            hashlib.sha256(content).digest()
            with raw.open("wb") as stream:
                stream.write(content)
                os.fsync(stream.fileno())

        checkpoints.save(1)
        saved = list(next(iter(checkpoint_folders(folder / "checkpoints").values())).iterdir())
        content = b"".join(path.read_bytes() for path in saved)
        ours, theirs, lower_bound = median_seconds([lambda: checkpoints.save(1), torch_save, minimal_write], REPEATS)
        our_load, their_load = median_seconds([checkpoints.load_latest, torch_load], REPEATS)
    name = f"checkpoint of {len(content) / 1e6:.0f} MB in {len(saved)} files"
    yield row(f"{name}: save", ours, "s")
    yield row(f"{name}: save, torch.save over ours", theirs / ours, "×")
    yield row(f"{name}: save, over the lower bound (SHA-256 and one write, flushed)", ours / lower_bound, "×", "≤ 1.3")
    yield row(f"{name}: load, every byte verified", our_load, "s")
    yield row(f"{name}: load, torch.load over ours", their_load / our_load, "×")
