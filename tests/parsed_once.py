"""Hydra's files are parsed once in each process of the tests: parsing was a third of the time of a composition."""

import io
from copy import deepcopy
from functools import cache
from typing import Any, TextIO

from omegaconf import OmegaConf
from yaml import YAMLError

_load = OmegaConf.load


@cache
def _parsed(text: str) -> Any:
    return _load(io.StringIO(text))


def _load_copy(file: TextIO | Any) -> Any:
    """As OmegaConf.load."""
    if not hasattr(file, "read"):
        return _load(file)
    text = file.read()
    try:
        return deepcopy(_parsed(text))
    except YAMLError:  # once more, so that the error names the file
        file.seek(0)
        return _load(file)


OmegaConf.load = staticmethod(_load_copy)
