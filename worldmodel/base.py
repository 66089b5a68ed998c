"""The interface of all world models: learn from sequences, then imagine rollouts from real steps."""

from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from worldmodel.outcome import Outcome, ended_within, rewards_until_end


class WorldModel(nn.Module, ABC):
    """Predicts what actions lead to. Independent of any reinforcement learning algorithm.

    Dimensions: B batch, T time, C context frames, A action width, R resolution.
    Time: `action[t]` is taken at `pixels[t]` and leads to `pixels[t + 1]`; `("next", "reward")[t]` is the reward of
    `action[t]`, on arrival at `pixels[t + 1]`.

    Attributes:
        context_length: C, number of real steps that `start` needs.
        max_horizon: Maximum number of steps imagined from one `start`.
        observations: What it observes and predicts: `pixels`, `state` or both; also `task` where it reads the task.
        resolution: R, of a model that observes pixels. state_dim: Width of `state`, of one that predicts it.
            embedding_size: Width of `embedding`, likewise.
        tasks: N, width of the one-hot `task`, of a model that reads it. action_dim: A. 0: it reads no actions.
        fits: Whether it learns by `fit`, from all transitions, instead of by `update`.
        goal_conditioned: Whether `start` needs a `goal` frame.
        predicts_reward: Whether `step` predicts a reward.
        predicts_end: Whether `step` predicts that an episode terminates.
        reads_reward: Whether `observe` is implemented: it predicts the reward of a real observation.
        learns_rewards: Whether `update_rewards` can train its rewards apart from the rest.
        context_keys: Further keys that the context of `start` must have, beside observations and `action`.
        measures: Names of the uncertainty estimates that `step` returns; higher means less certain.
        trained_horizon: Steps after the context in the longest training sequence. None: unlimited.
        temperature: Temperature that `step` samples with, 0 or more. None: it has none.
        first_updates: Number of initial updates that do not train the dynamics (those of the tokenizer alone).
    """

    context_length: int
    max_horizon: int
    observations: tuple[str, ...] = ("pixels",)
    resolution: int
    state_dim: int
    tasks: int
    action_dim: int
    fits: bool = False
    goal_conditioned: bool = False
    predicts_reward: bool = True
    predicts_end: bool = False
    reads_reward: bool = False
    learns_rewards: bool = False
    context_keys: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    embedding_size: int = 0
    trained_horizon: int | None = None
    temperature: float | None = None
    first_updates: int = 0

    @property
    def device(self) -> torch.device:
        """Device of the parameters and buffers; the CPU for a model without any."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).device

    @property
    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All optimisers by name, for checkpoints."""

    @abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one gradient step on sequences.

        Args:
            batch: [B, T] with the observations, such as `pixels` uint8 [B, T, 3, R, R], `action` [B, T, A] and
                `("next", "reward")` [B, T, 1]; a model that predicts ends also reads `("next", "terminated")` bool
                [B, T, 1].

        Returns:
            Metrics, detached 0-d tensors by name.

        Raises:
            FloatingPointError: A loss or a gradient is not finite. Its optimiser takes no step; parts that were trained
                before it in this update, and running statistics such as codebooks, have changed.
        """

    def update_rewards(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one gradient step on what predicts rewards from observations, and on nothing else.

        Args:
            batch: As for `update`, with T of C + 1 or more.

        Returns:
            As `update`.

        Raises:
            FloatingPointError: As `update`.
            TypeError: Its rewards do not learn apart (`learns_rewards`).
        """
        raise TypeError(f"{type(self).__name__} has no rewards that learn apart from the rest")

    def fit(self, transitions: TensorDictBase, max_updates: int) -> dict[str, Tensor]:
        """Train on all transitions until predictions of held-out data stop improving.

        Args:
            transitions: [N] single steps: the observations and the same under "next", `action` [N, A],
                `("next", "reward")` [N, 1], `("next", "terminated")` bool [N, 1], and `index` int64 [N], which
                identifies a transition permanently.
            max_updates: Maximum number of gradient steps.

        Returns:
            Metrics, detached 0-d tensors by name. `updates` is the number of gradient steps taken.

        Raises:
            FloatingPointError: A loss is not finite.
            TypeError: The model learns by `update`.
        """
        raise TypeError(f"{type(self).__name__} learns by update, not by fit")

    def kinds_of_updates(self, updates: int) -> dict[int, int]:
        """Groups of the next updates with equal cost, for time estimates: number of the first update -> how many."""
        return {0: updates} if updates else {}

    def skip_to(self, update: int) -> None:
        """Set the update counter, without training, so that a benchmark can time update number `update`."""

    @abstractmethod
    def start(self, context: TensorDictBase) -> Any:
        """Encode real steps once.

        Args:
            context: [B, C], oldest first, with the observations and `action`. `action[:, c]` leads to frame c + 1, so
                that the last one is not used.

        Returns:
            The state of the rollouts, an opaque object for `step`.
        """

    @abstractmethod
    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDictBase]:
        """Imagine one step.

        Args:
            state: State of B rollouts. It may be used up; fork it to continue it more than once.
            action: [B, A].

        Returns:
            The next state, and a TensorDict [B] with the predictions, such as `pixels` uint8 [B, 3, R, R], `reward`
            float32 [B, 1] in the units of the environment, each of `measures` float32 [B, 1], and from a model that
            predicts ends `terminated` bool [B, 1], a sample. What is predicted after that has no meaning.
        """

    def observe(self, state: Any, action: Tensor, observed: TensorDictBase) -> tuple[Any, TensorDictBase]:
        """Advance a state by a real observation instead of an imagined one.

        Args:
            state: As for `step`.
            action: [B, A].
            observed: [B] with the observations that the action led to.

        Returns:
            As `step`; the predictions of what was observed are left out, so that `reward` remains.

        Raises:
            TypeError: Not `reads_reward`.
        """
        raise TypeError(f"{type(self).__name__} does not predict rewards of given observations")

    @abstractmethod
    def fork(self, state: Any, n: int) -> Any:
        """Copy each row of a state; the copies share the encoded context.

        Args:
            state: State of B rollouts.
            n: Copies of each row.

        Returns:
            A state of B * n rollouts. Row b * n + i is the i-th copy of row b.
        """

    def set_temperature(self, value: float) -> None:
        """Set the sampling temperature of all later steps, also from existing states.

        Raises:
            ValueError: It is below 0.
            TypeError: The model has no temperature.
        """
        raise TypeError(f"{type(self).__name__} has no temperature")

    def measure_all(self) -> None:
        """From the next `start` on, compute all uncertainty estimates of the model and list them in `measures`."""

    @torch.no_grad()
    def predict(self, context: TensorDictBase, actions: Tensor, samples: int = 1) -> TensorDict:
        """Predict whole rollouts.

        Args:
            context: [B, C] as for `start`.
            actions: [B, H, A]. `actions[:, 0]` leads to the first imagined frame. A model without actions reads only H.
            samples: n, rollouts of each context.

        Returns:
            [B * n, H] with the predictions of `step`. Row b * n + i is the i-th rollout of context b.
        """
        state, steps = self.fork(self.start(context), samples), []
        for action in actions.repeat_interleave(samples, 0).unbind(1):
            state, prediction = self.step(state, action)
            steps.append(prediction)
        rollout = torch.stack(steps, 1)
        assert isinstance(rollout, TensorDict)
        return rollout

    @torch.no_grad()
    def outcome(self, state: Any, actions: Tensor, frames: int = 0) -> Outcome:
        """Predict the outcome of action sequences, for a planner. A model may decode as few frames as it can.

        Args:
            state: State of R rollouts. It may be used up, as by `step`.
            actions: [R, H, A].
            frames: How many of the last frames to decode, 0 to H.
        """
        rewards, ends = [], []
        pixels: list[Tensor] = []
        for action in actions.unbind(1):
            state, prediction = self.step(state, action)
            rewards.append(prediction["reward"] if self.predicts_reward else None)
            ends.append(prediction["terminated"] if self.predicts_end else None)
            pixels = [*pixels, prediction["pixels"]][-frames:] if frames else []
        return Outcome(rewards_until_end(rewards, ends), torch.stack(pixels, 1) if frames else None, ended_within(ends))

    def embedded(self) -> "WorldModel":
        """This model as an `EmbeddedWorldModel`, which observes and imagines embeddings instead of frames.

        Raises:
            TypeError: It has none.
        """
        raise TypeError(f"{type(self).__name__} has no embedding of frames")

    def reconstruct(self, steps: TensorDictBase) -> Tensor:
        """Frames uint8 of real steps [B, T], T >= C, encoded and decoded; unchanged for a model without a tokenizer."""
        pixels: Tensor = steps["pixels"]
        return pixels

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        """Codes of real steps [B, T], T > C, and the size of the codebook, by name of the codebook; {} without any."""
        return {}
