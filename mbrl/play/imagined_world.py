"""The imagined half of a session: a world model's states along a branch, most of which are computed anew when needed.

C context frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase

from mbrl.data.episodes import INITIAL, SNAPSHOT
from mbrl.device import fork_rng
from mbrl.envs.snapshots import SnapshotLayout
from mbrl.play.timeline import Moment
from worldmodel.base import WorldModel

KEPT = 8  # every so many moments keep the state of the world model


class ImaginedWorld:
    """Steps a world model along moments.

    A state of the model (a KV cache) takes megabytes, so that most moments keep only the seed of their sampling. From
    it, and from the last state that was kept, their state is computed anew: the same to the bit on a CPU.

    Args:
        model: the world model.
        env: the environment beside it, for its snapshots.
        actions: width of its actions.

    Attributes:
        initial: the first image of the session's episode, uint8 [3, R, R].
    """

    initial: npt.NDArray[np.uint8]

    def __init__(self, model: WorldModel, env: Any, actions: int) -> None:
        self.model, self._actions = model, actions
        self._layout = SnapshotLayout.of(env) if SNAPSHOT in model.context_keys else None

    def step(self, moments: Sequence[Moment], index: int, after: Moment) -> None:
        """Complete a moment by what the model predicts.

        Args:
            moments: those of a branch.
            index: of the one to step from.
            after: the next one, with its action and its seed.
        """
        before, model = moments[index], self.model
        state = self.state(moments, index)
        # The step uses the state up.
        before.state = model.fork(state, 1) if index % KEPT == 0 else None
        after.temperature = model.temperature
        after.state, predicted = self._advance(state, after)
        after.imagined = {
            key: predicted[key][0].cpu().numpy() for key in ("pixels", "state") if key in predicted.keys()
        }
        after.imagined_reward = float(predicted["reward"]) if model.predicts_reward else None
        after.measures = {name: float(predicted[name]) for name in model.uncertainty_keys}
        after.depth, after.since = before.depth + 1, (0 if before.anchor else before.since) + 1
        if after.since >= min(model.trained_horizon or model.max_horizon, model.max_horizon):
            self._anchor(after)

    def _anchor(self, moment: Moment) -> None:
        """Have the model start anew from its own newest frames; from real ones where it needs states beside them."""
        moment.anchor = "imagined" if self._layout is None else "real"
        if moment.anchor == "real":
            moment.imagined, moment.depth, moment.since = moment.real, 0, 0

    def _advance(self, state: Any, after: Moment) -> tuple[Any, TensorDictBase]:
        """Step the model to a moment from the state at the one before, which is used up."""
        assert after.action is not None
        if after.temperature is not None and after.temperature != self.model.temperature:
            self.model.set_temperature(after.temperature)
        action = torch.from_numpy(after.action[: self.model.action_dim])[None].to(self.model.device)
        with fork_rng():
            torch.manual_seed(after.seed)
            return self.model.step(state, action)

    @torch.no_grad()
    def state(self, moments: Sequence[Moment], index: int) -> Any:
        """The state of the model at a moment: the one that it keeps, or computed anew."""
        known = index
        while moments[known].state is None and moments[known].anchor is None:
            known -= 1
        moment = moments[known]
        state = self.model.start(self.context(moments, known)) if moment.anchor else moment.state
        if known == index:
            return state
        temperature = self.model.temperature
        state = self.model.fork(state, 1)
        for after in moments[known + 1 : index + 1]:
            state, _ = self._advance(state, after)
        if temperature is not None:
            self.model.set_temperature(temperature)
        return state

    def context(self, moments: Sequence[Moment], index: int) -> TensorDict:
        """The context [1, C] that ends at a moment, of the real or imagined frames that it is anchored in."""
        rows = moments[index + 1 - self.model.context_length : index + 1]
        own = moments[index].anchor == "imagined"
        observed = [{**row.real, **row.imagined} if own else row.real for row in rows]
        context = TensorDict(batch_size=[1, len(rows)])
        for key in observed[0]:
            # A model predicts the leading entries of the state, and reads no others.
            width = min(len(row[key]) for row in observed)
            context[key] = torch.from_numpy(np.stack([row[key][:width] for row in observed]))[None]
        actions = [row.action for row in rows[1:] if row.action is not None]
        context["action"] = torch.from_numpy(np.stack([*actions, np.zeros(self._actions, np.float32)]))[None]
        if self._layout is not None:
            context[SNAPSHOT] = torch.stack([self._layout.pack(row.snapshot) for row in rows])[None]
        if INITIAL in self.model.context_keys:
            context[INITIAL] = torch.from_numpy(self.initial).expand_as(context["pixels"])
        return context.to(self.model.device)
