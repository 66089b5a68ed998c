"""Start or resume a run, from Python with `mbrl.train` and from the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mbrl.run import Run


def train(overrides: str | Sequence[str] | Mapping[str, Any] = (), config_dir: str | Path | None = None) -> Run:
    """Train an agent or resume its run, like `mbrl train`. A finished run is only opened.

    Args:
        overrides: settings as on the command line, `["agent=sac", "env.task=hammer"]`; or by name,
            `{"agent": "sac", "env.task": "hammer", "total_env_steps": 20_000}`.
        config_dir: a folder of your own configurations, laid out as `configs/`.

    Returns:
        The finished run.

    Raises:
        UserError: a setting cannot work, or the run folder belongs to another configuration.
    """
    from mbrl.compose import composed
    from mbrl.run_folder.config import foreign_names
    from mbrl.run_folder.provenance import settings_given
    from mbrl.settings.overrides import override_of

    if isinstance(overrides, Mapping):
        lines = [override_of(key, value) for key, value in overrides.items()]
    else:
        lines = [overrides] if isinstance(overrides, str) else list(overrides)
    own_folder = None if config_dir is None else Path(config_dir)
    config = composed(lines, config_dir=own_folder)
    own = () if config_dir is None else ("--config-dir", str(config_dir))
    given = settings_given.set((*own, *lines))
    try:
        train_unless_finished(config)
    finally:
        settings_given.reset(given)
    return Run(Path(config.run_dir), own_folder, named=foreign_names(config).values())  # this process has built them


def train_unless_finished(config: DictConfig, on_start: Callable[[], None] = lambda: None) -> bool:
    """Check a configuration and train its run.

    Args:
        config: the configuration.
        on_start: called before the training starts.

    Returns:
        Whether it was trained. False: the run was finished before.
    """
    from mbrl.run_folder.checkpoint import Checkpoints
    from mbrl.run_folder.config import require_own_folder
    from mbrl.run_folder.files import remove_leftovers
    from mbrl.run_folder.paths import CHECKPOINTS
    from mbrl.run_folder.state import is_done
    from mbrl.training import check, run

    check(config)
    folder = Path(config.run_dir)
    require_own_folder(folder, config, longer=True)
    if is_done(folder, config.total_env_steps):
        remove_leftovers(folder)  # The process may have been killed while it wrote its last file,
        Checkpoints(folder / CHECKPOINTS, {}).clean()  # or unable to remove a checkpoint.
        return False
    on_start()
    run(config)
    return True
