"""The toy beside a world model with answers that can be worked out by hand, for the tests of `mbrl play`."""

import threading
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.envs.toy import make_env
from mbrl.play.episodes import Library, Source
from mbrl.play.load import Parts
from mbrl.play.messages import Command
from mbrl.play.player import Player
from mbrl.play.recording import Recordings
from mbrl.play.session import Session
from tests.fakes import CountingWorldModel

SIDE = 16
LENGTH = 40  # steps of an episode
PATIENCE = 20.0  # seconds


class Drawing(CountingWorldModel):
    """Each frame is its predecessor plus a drawn number of 1 to 4; the reward is the action's first entry."""

    context_length, max_horizon, trained_horizon = 2, 10, 5
    resolution, action_dim, uncertainty_keys, temperature = SIDE, 2, ("doubt",), 1.0

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[TensorDictBase] = []

    def start(self, context: TensorDictBase) -> Tensor:
        self.starts.append(context.clone())
        return super().start(context)

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        assert action.shape == (1, self.action_dim)
        drawn = torch.randint(1, 5, (1, 1))
        pixels = state + drawn.to(torch.uint8)[..., None, None]
        state.zero_()  # A state is used up.
        reward = action[:, :1] if self.action_dim else torch.zeros(1, 1)
        entries = {"pixels": pixels.clone(), "reward": reward, "doubt": drawn.float()}
        return pixels, TensorDict(entries, batch_size=[1])

    def fork(self, state: Tensor, n: int) -> Tensor:
        return state.repeat_interleave(n, 0).clone()

    def set_temperature(self, value: float) -> None:
        self.temperature = value


def session(**attributes: Any) -> Session:
    """A session of the toy with `Drawing`, some of whose attributes are replaced."""
    model = Drawing()
    for name, value in attributes.items():
        setattr(model, name, value)
    return Session(make_env(resolution=SIDE, episode_length=LENGTH), model)


def parts(folder: Path, sources: dict[str, Source] | None = None, **attributes: Any) -> Parts:
    """All that a page needs, around `session`."""
    made = session(**attributes)

    def make(**options: Any) -> Any:
        return make_env(resolution=SIDE, episode_length=LENGTH, **options)

    library = Library(sources or {}, make)
    return Parts("the toy", "toy", made, {}, library, Recordings(folder, {"task": "toy", "action_repeat": 1}))


def catch_up(player: Player) -> None:
    """Wait until a player has carried out every earlier command, has ended the step it was in, and has shown both.

    It does one thing after the other, so the answer to one more command, which is refused, comes after all of them.
    """
    answered = threading.Event()
    player.submit(Command("select", {"branch": -1}), lambda message: answered.set())
    assert answered.wait(PATIENCE)
