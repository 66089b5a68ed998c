"""The parts of a checkpoint: what is saved of a module, of optimisers, of counters and of random generators."""

from __future__ import annotations

import logging
import random
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mbrl.errors import UserError, is_out_of_memory
from mbrl.run_folder.schema import Maybe, Schema, SchemaError, TensorType, schema_of

# what schedules change of a group's settings; all else is as the configuration has it
SCHEDULED = ("lr", "initial_lr", "betas", "momentum", "step")

_log = logging.getLogger(__name__)


class Part(Protocol):
    """Something that a checkpoint saves and restores.

    `state_dict` gives nested dictionaries of tensors and JSON values. `schema` says which states `load_state_dict` may
    be given; the checkpoint holds them against it first.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def schema(self) -> Schema: ...


class Stateful(Protocol):
    """A torch module, or what has its two methods."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class ModulePart:
    """The parameters and buffers of a module, and its extra state."""

    def __init__(self, module: Stateful) -> None:
        self._module = module

    def state_dict(self) -> dict[str, Any]:
        return dict(self._module.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._module.load_state_dict(state)

    def schema(self) -> Schema:
        return schema_of(self.state_dict())


class ValuesPart:
    """A dictionary of JSON values, restored in place. Its keys are fixed.

    Args:
        values: a flat dictionary, or one of flat dictionaries.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def state_dict(self) -> dict[str, Any]:
        return self._values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._values.update(state)

    def schema(self) -> Schema:
        return schema_of(self._values)


class SchedulerPart:
    """A learning-rate scheduler's counters."""

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        self._scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state)

    def schema(self) -> Schema:
        return schema_of(self.state_dict())


class OptimizersPart:
    """Optimisers by name: the moments of each parameter, and the settings of each group of parameters."""

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        return {name: _optimizer_state(optimizer) for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self._optimizers.items():
            _load_optimizer(optimizer, state[name])

    def schema(self) -> Schema:
        return {name: _optimizer_schema(optimizer) for name, optimizer in self._optimizers.items()}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Moments by the number of their parameter, and what schedules change of the groups' settings."""
    state = optimizer.state_dict()
    return {
        "moments": {str(number): moments for number, moments in state["state"].items()},
        "groups": {
            str(number): {key: group[key] for key in SCHEDULED if key in group}
            for number, group in enumerate(state["param_groups"])
        },
    }


def _optimizer_schema(optimizer: torch.optim.Optimizer) -> Schema:
    """Parameters that had no gradient yet have no moments."""
    moments: dict[str, Schema] = {}
    for group in optimizer.param_groups:
        kinds: dict[TensorType, dict[str, Schema]] = {}  # equal parameters have equal moments
        for parameter in group["params"]:
            kind = TensorType.of(parameter)
            if kind not in kinds:
                kinds[kind] = _moments_of(optimizer, group, kind)
            moments[str(len(moments))] = Maybe(kinds[kind])
    groups = schema_of(_optimizer_state(optimizer)["groups"])
    for group in groups.values():
        group.setdefault("initial_lr", Maybe(float))  # where a schedule has set it, as torch's do
    return {"moments": Maybe(moments), "groups": groups}


def _moments_of(optimizer: torch.optim.Optimizer, group: dict[str, Any], kind: TensorType) -> dict[str, Schema]:
    """The state that the optimiser keeps for a parameter, found by one step of a copy of it on a parameter of its own.

    Raises:
        ValueError: the optimiser cannot take such a step, so that no checkpoint of it could be checked.
    """
    parameter = torch.zeros([int(length or 0) for length in kind.shape], dtype=kind.dtype, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    copy = object.__new__(type(optimizer))
    copy.__dict__.update(optimizer.__dict__)
    copy.__dict__.pop("step", None)  # a scheduler hides the method behind a wrapper
    copy.__dict__["_optimizer_step_pre_hooks"] = OrderedDict()
    copy.__dict__["_optimizer_step_post_hooks"] = OrderedDict()
    copy.state, copy.param_groups = defaultdict(dict), [{**group, "params": [parameter]}]
    try:
        copy.step()
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{type(optimizer).__name__} cannot be saved in checkpoints ({error})") from error
    return {key: schema_of(value) for key, value in copy.state[parameter].items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimiser; each moment lies in memory as its parameter does.

    Files hold contiguous tensors. A fused optimiser steps through memory whatever the strides: beside a channels-last
    parameter, contiguous moments would belong to other weights.
    """
    groups = optimizer.state_dict()["param_groups"]
    for number, group in enumerate(groups):
        for key, value in state["groups"][str(number)].items():
            group[key] = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
    moments = {int(number): saved for number, saved in state.get("moments", {}).items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if not isinstance(value, Tensor):
                continue
            if value.shape == parameter.shape:
                kept[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            else:
                kept[key] = value.clone()  # else it would keep the checkpoint's file open


class RandomStates:
    """The global random generators of Python, numpy and torch, those of its GPUs among them."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        _, words, gauss = random.getstate()
        _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global one is meant
        state: dict[str, Any] = {
            "python": {"words": torch.tensor(words), "gauss": gauss},
            "numpy": {
                "keys": torch.from_numpy(np.asarray(keys, np.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "gauss": float(cached),
            },
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = torch.stack([generator.cpu() for generator in torch.cuda.get_rng_state_all()])
        return state

    def schema(self) -> Schema:
        return {
            "python": {"words": TensorType(torch.int64, (625,)), "gauss": (float, type(None))},
            "numpy": {
                "keys": TensorType(torch.int64, (624,)),
                "position": int,
                "has_gauss": int,
                "gauss": float,
            },
            "torch": TensorType(torch.uint8, tuple(torch.get_rng_state().shape)),
            "cuda": Maybe(TensorType(torch.uint8, (None, None))),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = state
        self.restore()

    def restore(self) -> None:
        """Put the generators back to what was loaded last.

        Raises:
            SchemaError: a generator refuses its state.
        """
        assert self._loaded is not None, "nothing was loaded"
        state, python, numpy = self._loaded, self._loaded["python"], self._loaded["numpy"]
        if numpy["position"] > len(numpy["keys"]) or numpy["has_gauss"] > 1:  # numpy would read beyond its keys
            raise SchemaError(f"numpy's random generator cannot stand at {numpy['position']}")
        try:
            random.setstate((3, tuple(python["words"].tolist()), python["gauss"]))
            keys = numpy["keys"].numpy().astype(np.uint32)
            np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["gauss"]))  # noqa: NPY002
            torch.set_rng_state(state["torch"].clone())
            _restore_gpus(state.get("cuda"))
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise SchemaError(f"a random generator refuses its state ({error})") from error


def _restore_gpus(saved: Tensor | None) -> None:
    """Restore the generators of as many GPUs as there are, with one warning where that is not all."""
    count, present = 0 if saved is None else len(saved), torch.cuda.device_count()
    if saved is not None and present:
        torch.cuda.set_rng_state_all(list(saved[:present]))
    if count > present:
        _log.warning(
            "the checkpoint has the random states of %d GPUs and this machine has %d: the others are dropped, so that "
            "the run goes on with other random numbers than it would have there",
            count,
            present,
        )
