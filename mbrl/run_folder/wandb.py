"""Weights & Biases beside the files of a run, where it is asked for (`pip install -e '.[wandb]'`)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mbrl.errors import UserError
from mbrl.run_folder.files import write_atomically

ID = "wandb_id"  # a file in the run's folder: a run that is begun anew elsewhere is another


def require_package() -> None:
    """ValueError where it is not installed."""
    if find_spec("wandb") is None:
        raise UserError("wandb needs a package that is not here: in the clone, pip install -e '.[wandb]'")


def _identity(file: Path) -> str:
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")


class WandbTracker:
    """A run of Weights & Biases with the same names as metrics.jsonl, over `env_steps`.

    A resumed run goes on in the same one; what it does again after its checkpoint is then there twice.

    Args:
        project: of Weights & Biases.
        run_dir: the run's folder, which names it.
        settings: shown as its configuration.

    Raises:
        ValueError: the package is not installed, or the service refuses.
    """

    def __init__(self, project: str, run_dir: Path, settings: Mapping[str, Any]) -> None:
        require_package()
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=project,
                name=str(run_dir),
                id=_identity(run_dir / ID),
                resume="allow",
                dir=run_dir,
                config=dict(settings),
            )
        except wandb.errors.Error as error:
            raise UserError(f"Weights & Biases: {error}") from error
        self._run.define_metric("*", step_metric="env_steps")

    def log(self, row: Mapping[str, float]) -> None:
        self._run.log(dict(row))

    def video(self, name: str, file: Path, env_steps: int) -> None:
        self._run.log({name: self._wandb.Video(str(file)), "env_steps": env_steps})

    def close(self) -> None:
        self._run.finish()
