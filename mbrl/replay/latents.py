"""Latent states in the replay, one for each record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl.data.episodes import EMBEDDING, OBSERVATIONS
from mbrl.replay.storage import enlarged
from mbrl.run_folder.schema import TensorType
from policies.base import Policy


class Latents:
    """Latent states or embeddings of the records of a ring, which are recomputed as the model learns.

    Kept in memory and saved in full with every checkpoint: unlike records, which may be memory-mapped, they change,
    and a resumed run needs the values of the checkpoint.

    Args:
        size: records of the ring.
        types: dtype and shape of each entry of one record's latents; none where no policy keeps any.

    Attributes:
        device: where they are kept, which is where batches are drawn.
    """

    def __init__(self, size: int, types: Mapping[str, TensorType] | None = None) -> None:
        self.size, self._types = size, types or {}
        self.values: TensorDictBase | None = None  # [size], once there are any
        self.device = torch.device("cpu")

    @property
    def observed(self) -> tuple[str, ...]:
        """Entries that are observations of a policy, once there are any."""
        return () if self.values is None else tuple(key for key in self._types if key in OBSERVATIONS)

    @property
    def room(self) -> int:
        """Bytes of memory that the latents of all records take."""
        each = sum(math.prod(int(n or 0) for n in shape) * dtype.itemsize for dtype, shape in self._types.values())
        return self.size * each

    def read(self, rows: Tensor, unknown: TensorDictBase) -> TensorDictBase:
        """Those of records [N]; `unknown` [] stands for those without latents."""
        if self.values is None:
            self.values = unknown.to(self.device).expand(self.size).clone()
        found: TensorDictBase = self.values[rows.to(self.device)].to(rows.device)
        return found

    def write(self, rows: Tensor, latents: TensorDictBase) -> None:
        """Note those of records [N]; where one is named several times, its last."""
        rows, latents = rows.to(self.device), latents.to(self.device)
        if self.values is None:
            self.values = torch.zeros_like(latents[0].expand(self.size))
        ordered, order = rows.sort(stable=True)
        # Rows that are named several times all get the value of the last: the order of several writes is not defined.
        last = torch.searchsorted(ordered, ordered, right=True) - 1
        self.values[ordered] = latents[order[last]]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.values is None else self.values.cpu().to_dict()

    def schema(self) -> dict[str, TensorType]:
        return {key: TensorType(dtype, (None, *shape)) for key, (dtype, shape) in self._types.items()}

    def load_state_dict(self, state: dict[str, Any], size: int) -> None:
        """Take over the latents of a ring of `size` records, which may be smaller; see `enlarged`."""
        self.values = enlarged(state, size, self.size).to(self.device) if state else None


def latent_types(policy: Policy) -> dict[str, TensorType]:
    """Types of the latent states or embeddings that the replay keeps of each record for a policy; {} without any."""
    if policy.embedding_size:
        return {EMBEDDING: TensorType(torch.float32, (policy.embedding_size,))}
    latent = policy.carried.get("latent", None) if policy.carried is not None else None
    return {} if latent is None else {key: TensorType(spec.dtype, tuple(spec.shape)) for key, spec in latent.items()}
