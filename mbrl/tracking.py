"""Weights & Biases beside the files of a run, where it is asked for (`pip install 'mbrl[wandb]'`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tracker:
    """A run of Weights & Biases with the same names as metrics.jsonl, over `env_steps`.

    A resumed run goes on in the same one; what it does again after its checkpoint is then there twice.

    Args:
        project: of Weights & Biases.
        run_dir: the run's folder, which names it.
        settings: shown as its configuration.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, project: str, run_dir: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ValueError("wandb needs a package that is not here: pip install 'mbrl[wandb]'") from error
        self._wandb = wandb
        identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=project, name=str(run_dir), id=identity, resume="allow", dir=run_dir, config=dict(settings)
        )
        self._run.define_metric("*", step_metric="env_steps")

    def log(self, row: Mapping[str, float]) -> None:
        self._run.log(dict(row))

    def video(self, name: str, file: Path, env_steps: int) -> None:
        self._run.log({name: self._wandb.Video(str(file)), "env_steps": env_steps})

    def close(self) -> None:
        self._run.finish()
