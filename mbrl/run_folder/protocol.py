"""A run that names a protocol must have the settings of that protocol, so that its name can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from mbrl.errors import UserError
from mbrl.run_folder.config import flatten

GROUP, NAME, DEFAULT = "protocol", "protocol.name", "default"


def require_protocol(
    config: DictConfig, folders: Iterable[Path], compose: Callable[..., DictConfig], overrides: Iterable[str]
) -> None:
    """Check that the settings are those of the protocol that the configuration names.

    Args:
        config: a composed configuration; one without `protocol.name` is of another command and passes.
        folders: where `protocol/NAME.yaml` may be; the first one counts.
        compose: composes a configuration when called with `overrides`.
        overrides: those of this one.

    Raises:
        UserError: there is no such protocol, it is one of another environment, or a setting is not the protocol's; the
            message names the first one.
    """
    name = OmegaConf.select(config, NAME)
    if name is None or name == DEFAULT:
        return
    files = [file for folder in folders for file in (folder / GROUP).glob("*.yaml") if file.stem == str(name)]
    if not files:
        raise UserError(f"{NAME}={name} chooses nothing, it only records the choice: give {GROUP}=NAME instead")
    plain = compose(overrides=[*(one for one in overrides if not one.startswith(f"{GROUP}=")), f"{GROUP}={DEFAULT}"])
    for key, wanted in _settings(files[0]).items():
        found = OmegaConf.select(config, key)
        if key.startswith("env.") and key.removeprefix("env.") not in plain.env:
            raise UserError(
                f"{GROUP}={name} sets {key}, which this environment ({plain.env.task}) does not have: it is a protocol "
                f"of another one; leave {GROUP} out"
            )
        if found != wanted:
            raise UserError(
                f"{key} is {found}, and {GROUP}={name} means {wanted}: leave {key} out, or leave {GROUP} out and give "
                "each of its settings"
            )


def _settings(file: Path) -> dict[str, Any]:
    """The dotted keys and values of a protocol's file; values that refer to other settings are left out."""
    content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    own = {key: value for key, value in content.items() if key != "defaults"} if isinstance(content, Mapping) else {}
    return {key: value for key, value in flatten(own).items() if not (isinstance(value, str) and "${" in value)}
