"""Interface of all world models: learn from sequences, then imagine rollouts from real steps."""

from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from worldmodel.outcome import Outcome, any_terminated, rewards_until_termination


class WorldModel(nn.Module, ABC):
    """Predicts observations, rewards and terminations of action sequences, for any reinforcement learning algorithm.

    Dimensions: B batch, T time, C context frames, A action width, R resolution.
    Time: `action[t]` is taken at `pixels[t]` and leads to `pixels[t + 1]`; `("next", "reward")[t]` is the reward of
    `action[t]`, on arrival at `pixels[t + 1]`.

    Attributes:
        context_length: C, number of real steps that `start` needs.
        max_horizon: Maximum number of steps imagined from one `start`.
        observations: Keys that it reads and predicts: `pixels`, `state` or both; also `task` if it reads the task.
        resolution: R, if it reads pixels. state_dim: Width of `state`, if it predicts it.
            embedding_size: Width of `embedding`, likewise.
        tasks: N, width of the one-hot `task`, if it reads it. action_dim: A. 0: it reads no actions.
        fits: Whether it learns by `fit`, from all transitions, instead of by `update`.
        goal_conditioned: Whether `start` needs a `goal` frame.
        predicts_reward: Whether `step` predicts a reward.
        predicts_termination: Whether `step` predicts that an episode terminates.
        reads_reward: Whether `observe` is implemented, which predicts the reward of a real observation.
        learns_rewards: Whether `update_rewards` can train the reward predictor alone.
        context_keys: Keys that the context of `start` must have besides observations and `action`.
        uncertainty_keys: Names of the uncertainty estimates that `step` returns; higher means less certain.
        trained_horizon: Steps after the context in the longest training sequence. None: unlimited.
        temperature: Sampling temperature of `step`, 0 or more. None: it has none.
        first_updates: Number of initial updates that train the tokenizer alone, not the dynamics.
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
    predicts_termination: bool = False
    reads_reward: bool = False
    learns_rewards: bool = False
    context_keys: tuple[str, ...] = ()
    uncertainty_keys: tuple[str, ...] = ()
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
                `("next", "reward")` [B, T, 1]; a model that predicts terminations also reads
                `("next", "terminated")` bool [B, T, 1].

        Returns:
            Metrics, detached 0-d tensors by name.

        Raises:
            FloatingPointError: A loss or a gradient is not finite. Its optimiser takes no step. Parts that were trained
                earlier in this update, and running statistics such as codebooks, have changed.
        """

    def update_rewards(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one gradient step on the reward predictor alone.

        Args:
            batch: As for `update`, with T of C + 1 or more.

        Returns:
            As `update`.

        Raises:
            FloatingPointError: As `update`.
            TypeError: The model has no separate reward predictor (`learns_rewards`).
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
            TypeError: The model learns by `update`, not by `fit`.
        """
        raise TypeError(f"{type(self).__name__} learns by update, not by fit")

    def kinds_of_updates(self, updates: int) -> dict[int, int]:
        """Groups of the next updates with equal cost, for time estimates: number of the first update -> count."""
        return {0: updates} if updates else {}

    def skip_to(self, update: int) -> None:
        """Set the update counter, without training, so that a benchmark can time update number `update`."""

    @abstractmethod
    def start(self, context: TensorDictBase) -> Any:
        """Encode real steps, from which rollouts start.

        Args:
            context: [B, C], oldest first, with the observations and `action`. `action[:, c]` leads to frame c + 1, so
                the last one is not used.

        Returns:
            The state of the rollouts, an opaque object for `step`.
        """

    @abstractmethod
    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDictBase]:
        """Imagine one step.

        Args:
            state: State of B rollouts, which `step` may change in place; fork it to continue it more than once.
            action: [B, A].

        Returns:
            The next state, and a TensorDict [B] with the predictions, such as `pixels` uint8 [B, 3, R, R], `reward`
            float32 [B, 1] in the units of the environment, each of `uncertainty_keys` float32 [B, 1], and `terminated`
            bool [B, 1], sampled, if the model predicts terminations. Predictions after a termination have no meaning.
        """

    def observe(self, state: Any, action: Tensor, observed: TensorDictBase) -> tuple[Any, TensorDictBase]:
        """Advance a state by a real observation instead of an imagined one.

        Args:
            state: As for `step`.
            action: [B, A].
            observed: [B] with the observations that the action led to.

        Returns:
            As `step`, without predictions of the observations: `reward` remains.

        Raises:
            TypeError: `reads_reward` is false.
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

    def enable_all_uncertainties(self) -> None:
        """Compute all uncertainty estimates from the next `start` on, and list them in `uncertainty_keys`."""

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
        """Predict the outcome of action sequences, for a planner. A subclass may decode only the frames it needs.

        Args:
            state: State of R rollouts, which may be changed in place, as by `step`.
            actions: [R, H, A].
            frames: Number of last frames to decode, 0 to H.
        """
        rewards, terminated = [], []
        pixels: list[Tensor] = []
        for action in actions.unbind(1):
            state, prediction = self.step(state, action)
            rewards.append(prediction["reward"] if self.predicts_reward else None)
            terminated.append(prediction["terminated"] if self.predicts_termination else None)
            pixels = [*pixels, prediction["pixels"]][-frames:] if frames else []
        reward = rewards_until_termination(rewards, terminated)
        return Outcome(reward, torch.stack(pixels, 1) if frames else None, any_terminated(terminated))

    def embedded(self) -> "WorldModel":
        """This model as an `EmbeddedWorldModel`, which observes and imagines embeddings instead of frames.

        Raises:
            TypeError: It has no embedding.
        """
        raise TypeError(f"{type(self).__name__} has no embedding of frames")

    def reconstruct(self, steps: TensorDictBase) -> Tensor:
        """Encode and decode the frames of real steps [B, T], T >= C: uint8; unchanged without a tokenizer."""
        pixels: Tensor = steps["pixels"]
        return pixels

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        """Codes of real steps [B, T], T > C, and codebook size, by the codebook's name; {} without a tokenizer."""
        return {}
