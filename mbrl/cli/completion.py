"""Completion of commands, options and settings in the shell, by argcomplete.

To enable it in bash or zsh, with the environment active: eval "$(register-python-argcomplete mbrl)"
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

COMPLETION_VARIABLE = "_ARGCOMPLETE"  # environment variable that the shell's hook sets to request completions


def complete(parser: argparse.ArgumentParser) -> None:
    """Print completions and exit, if the shell requests them."""
    if COMPLETION_VARIABLE in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def add_completions(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options and settings of a command that Hydra parses.

    Args:
        command: the parser of the command.
        name: `train` or `pretrain`.
    """
    for option in ("--help", "--multirun", "--hydra-help"):
        command.add_argument(option, action="store_true")
    if name == "train":
        command.add_argument("--estimate", action="store_true")
    command.add_argument("--cfg", choices=("job", "hydra", "all"))
    command.add_argument("--config-dir", type=Path)
    settings = command.add_argument("settings", nargs="*")
    settings.completer = Settings(name)  # type: ignore[attr-defined]


class Settings:
    """Completes `agent=drqv2`, `env.task=` and the like.

    Args:
        command: `train` or `pretrain`.
    """

    def __init__(self, command: str) -> None:
        self._command = command

    def __call__(self, prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
        from mbrl.cli.configured import CONFIGURED
        from mbrl.compose import group_key, groups, settings_of

        folder = parsed_args.config_dir
        chosen = CONFIGURED[self._command].groups
        choices = {group_key(group, self._command): names for group, names in groups(folder).items() if group in chosen}
        name, has_value, _typed = prefix.partition("=")
        if has_value:
            return [f"{name}={member}" for member in choices.get(name, ())]
        others = settings_of(self._command, [line for line in parsed_args.settings or () if "=" in line], folder)
        return [f"{key}=" for key in (*choices, *others)]
