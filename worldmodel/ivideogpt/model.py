"""iVideoGPT as a world model: learns from sequences, and imagines rollouts with a key/value cache.

Dimensions: B batch, T time, C real context frames, F = T - C future frames, H horizon, A action width, R resolution,
L tokens. Source: iVideoGPT (Wu et al., NeurIPS 2024, arXiv 2405.15223).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec

from worldmodel.base import WorldModel
from worldmodel.ivideogpt.check_sizes import check_sizes
from worldmodel.ivideogpt.counter import HostCounter
from worldmodel.ivideogpt.defects import NO_DEFECTS, PublishedDefects
from worldmodel.ivideogpt.embedded import EmbeddedIVideoGPT
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.objectives import RewardObjective, TokenizerObjective, TransformerObjective
from worldmodel.ivideogpt.official import load_parts, save_parts
from worldmodel.ivideogpt.precision import Precision
from worldmodel.ivideogpt.reconstruction import Reconstructor
from worldmodel.ivideogpt.rewards import TwoHotRewards
from worldmodel.ivideogpt.rollout.decoding import Sampling
from worldmodel.ivideogpt.rollout.graphs import FrameGraphs, predict_frame
from worldmodel.ivideogpt.rollout.rollout import Rollouts
from worldmodel.ivideogpt.rollout.state import ImaginedState
from worldmodel.ivideogpt.segments import ACTIONS, HISTORY, Conditioning, SegmentReader
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import Optimizers, TrainingPlan, train_part
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer
from worldmodel.ivideogpt.weights.sizes import by_name
from worldmodel.outcome import Outcome, any_terminated, rewards_until_termination
from worldmodel.ranges import Frames


class IVideoGPT(WorldModel):
    """A compressive tokenizer, and a transformer that is conditioned on actions and predicts rewards.

    Args:
        observation_spec: Has `pixels` [3, R, R] of the tokenizer's resolution, and `state` where the transformer has
            proprioception.
        action_spec: Spec of actions [A].
        tokenizer: Makes the tokenizer when called.
        transformer: Makes a transformer when called with (layout, action_dim).
        optimizers: Optimisers of the parts.
        training: What each update trains.
        sampling: How codes are sampled in rollouts.
        segment_length: T of the longest training sequence.
        horizon: Maximum frames of a rollout, 1 or more; every T - C frames the newest become the context. None: T - C.
        reward_network: Makes a network that predicts the rewards, in the place of the transformer's head, when called
            with (tokenizer, action_dim). It learns in every update, and is no part of `save_pretrained`. None: none.
        terminates: Whether the environment terminates episodes; the reward network then learns when.
        conditioning: Whether the model reads actions, a goal frame, and the initial frame as its context.
        precision: "float32", "bfloat16" or "auto", of the large matrix products. Weights stay float32. See Precision.
        cuda_graphs: Whether a GPU imagines whole frames from captured graphs, see rollout.graphs.
        pretrained: Weights to start from, published or own: a folder or a Hugging Face id. Sizes then come from the
            weights (see official.load_parts), and the tokenizer is not trained alone at first. None: random weights.
        defects: Defects of the published implementation; none by default.

    Raises:
        ValueError: The settings do not fit together, to the specs or to the weights.
        FileNotFoundError: There are no weights at `pretrained`.
    """

    updates: Tensor
    _imagined_after = -1  # value of `updates` at the last start

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        tokenizer: Callable[[], CompressiveTokenizer],
        transformer: Callable[[TokenLayout, int | None], VideoTransformer],
        optimizers: Optimizers,
        training: TrainingPlan,
        sampling: Sampling,
        segment_length: Frames,
        horizon: Frames | None = None,
        reward_network: Callable[..., TwoHotRewards] | None = None,
        terminates: bool = False,
        conditioning: Conditioning = ACTIONS,
        precision: Literal["float32", "bfloat16", "auto"] = "float32",
        cuda_graphs: bool = False,
        pretrained: str | None = None,
        defects: PublishedDefects = NO_DEFECTS,
    ) -> None:
        super().__init__()
        goal, action_dim = conditioning.goal, action_spec.shape[-1] if conditioning.actions else None
        if pretrained is None:
            self.tokenizer = tokenizer()
            self.transformer = transformer(self.tokenizer.layout, action_dim)
        else:
            configured = by_name("tokenizer", tokenizer) | by_name("transformer", transformer)
            self.tokenizer, self.transformer = load_parts(pretrained, action_dim, goal, configured)
        self.plan, self.precision, self.segment_length = training, Precision(precision), segment_length
        self.context_length = HISTORY if conditioning.initial else self.tokenizer.context_length - goal
        self.context_keys, self.resolution = ("initial",) * conditioning.initial, self.tokenizer.resolution
        self.action_dim, self.temperature, self._counter = action_dim or 0, sampling.temperature, HostCounter()
        reader = self._reader(action_dim, conditioning, defects.rewards_off_by_one)
        futures = reader.longest - reader.context_length
        self.trained_horizon, self.max_horizon = futures, futures if horizon is None else horizon
        options = {"terminates": True} if terminates else {}
        self.reward_network = None if reward_network is None else reward_network(self.tokenizer, action_dim, **options)
        head, self.learns_rewards = self.transformer.reward_linear is not None, self.reward_network is not None
        self.predicts_termination = self.reward_network is not None and self.reward_network.terminates
        self.goal_conditioned, self.predicts_reward = goal, head or self.learns_rewards
        self.reads_reward = self.learns_rewards or (head and self.transformer.queries is None)
        self._check(observation_spec, reader, fresh=pretrained is None)
        self.first_updates = training.tokenizer_updates if pretrained is None else 0
        self.register_buffer("updates", torch.tensor(training.tokenizer_updates - self.first_updates))
        self._optimizers = optimizers.make(self.tokenizer, self.transformer, self.reward_network)
        parts = (self.tokenizer, self.transformer, reader)
        self.reconstructor = Reconstructor(self.tokenizer, reader, self.precision)
        frames = reader.futures, self.max_horizon
        self.rollouts = Rollouts(*parts, sampling, *frames, self.precision, defects, self.reward_network)
        self.rollouts.predict = FrameGraphs() if cuda_graphs else predict_frame
        # A fused optimiser does not raise `Parameter._version`, so each of its steps invalidates the snapshot here.
        self._optimizers["transformer"].register_step_post_hook(lambda *_: self.rollouts.drop_snapshot())
        self.objectives = self._make_objectives(*parts, training, defects)

    def _check(self, observation_spec: Composite, reader: SegmentReader, fresh: bool) -> None:
        """ValueError where the sizes or the plan do not fit; `fresh`: weights are random."""
        check_sizes(observation_spec, self.tokenizer, self.transformer, self.segment_length, self.max_horizon, reader)
        if fresh:
            self.plan.check(self.tokenizer.quantize.warmup)

    def _make_objectives(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        reader: SegmentReader,
        training: TrainingPlan,
        defects: PublishedDefects,
    ) -> dict[str, nn.Module]:
        """Training objectives by part, in a plain dict so that `state_dict` does not list the parts' weights twice."""
        made: dict[str, nn.Module] = {
            "tokenizer": TokenizerObjective(tokenizer, reader, training, self.precision),
            "transformer": TransformerObjective(
                tokenizer, transformer, reader, training, self.precision, defects.full_vocabulary_loss
            ),
        }
        if self.reward_network is not None:
            made["reward_network"] = RewardObjective(self.reward_network, tokenizer, reader, self.precision)
        return made

    @property
    def dtype(self) -> torch.dtype:
        """Type of the large matrix products on the device where the model is."""
        return self.precision.dtype(self.updates.device)

    @property
    def layout(self) -> TokenLayout:
        """Order and numbering of the tokens of a segment."""
        return self.transformer.layout

    def _reader(self, action_dim: int | None, conditioning: Conditioning, rewards_off_by_one: bool) -> SegmentReader:
        goal, robot = conditioning.goal, self.transformer.proprioception
        sizes = (self.tokenizer.resolution, self.context_length, self.segment_length - goal, action_dim)
        width, initial = 0 if robot is None else robot.size, self.tokenizer.context_length * conditioning.initial
        return SegmentReader(
            *sizes, proprioception=width, goal=goal, rewards_off_by_one=rewards_off_by_one, initial=initial
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if isinstance(self.plan.perceptual, nn.Module):
            self.plan.perceptual._apply(fn)  # It is no submodule, but follows the model to its device.
        return super()._apply(fn, recurse)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimizers

    def get_extra_state(self) -> dict[str, str]:
        """The precision that the model computes in; a resumed run keeps it on any machine."""
        return {"precision": self.precision.name(self.updates.device)}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self.precision.resume(state["precision"])
        self.rollouts.drop_snapshot()

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """As WorldModel.update; T may be C + 1 to `segment_length`. The buffer `updates` decides which parts learn."""
        updates = self._counter.value(self.updates)
        metrics: dict[str, Tensor] = {}
        if updates >= self.plan.tokenizer_updates:
            metrics |= self._step("transformer", batch, updates - self.plan.tokenizer_updates)
        if self.plan.trains_tokenizer(updates):
            self.freeze_codebooks(updates >= self.plan.tokenizer_updates)
            metrics |= self._step("tokenizer", batch, self._since_start(updates))
        if self.reward_network is not None:
            metrics |= self._step("reward_network", batch, self._since_start(updates))
        self._counter.add_one(self.updates)
        return metrics

    def update_rewards(self, batch: TensorDictBase) -> dict[str, Tensor]:
        # At the full rate: the network warms up in the updates of the whole model.
        return self._step("reward_network", batch, self.plan.warmup_updates)

    def _since_start(self, updates: int) -> int:
        """Number of updates so far; pretrained weights start the counter after the tokenizer-only updates."""
        return updates - (self.plan.tokenizer_updates - self.first_updates)

    def kinds_of_updates(self, updates: int) -> dict[int, int]:
        return self.plan.kinds_of_updates(int(self.updates), updates)

    def skip_to(self, update: int) -> None:
        self.updates.fill_(update)

    def start(self, context: TensorDictBase) -> ImaginedState:
        """As WorldModel.start; a goal-conditioned model also needs `goal`, one with proprioception `state`."""
        updates = int(self.updates)
        if updates != self._imagined_after:  # Another process may train shared weights, without a new `_version` here.
            self._imagined_after = updates
            self.rollouts.drop_snapshot()
        return self.rollouts.start(context)

    def step(self, state: ImaginedState, action: Tensor | None) -> tuple[ImaginedState, TensorDict]:
        """As WorldModel.step; with proprioception also `state` [B, P]."""
        state, frame = self.rollouts.advance(state, action)
        state, (frame,), pixels = self.rollouts.decode_frames(
            state, [frame], None if action is None else action.unsqueeze(1)
        )
        prediction = frame.predictions()
        prediction["pixels"] = pixels.squeeze(1)
        return state, prediction

    def observe(
        self, state: ImaginedState, action: Tensor | None, observed: TensorDictBase
    ) -> tuple[ImaginedState, TensorDict]:
        """As WorldModel.observe, from `pixels`."""
        state, frame = self.rollouts.observe(state, action, observed["pixels"])
        return state, frame.predictions()

    def fork(self, state: ImaginedState, n: int) -> ImaginedState:
        return self.rollouts.fork(state, n)

    def set_temperature(self, value: float) -> None:
        self.rollouts.sampling = replace(self.rollouts.sampling, temperature=value)
        self.temperature = value

    def predict(self, context: TensorDictBase, actions: Tensor, samples: int = 1) -> TensorDict:
        """As WorldModel.predict; frames are decoded in one batch, at the end and wherever the context is replaced."""
        state = self.start(context)
        if samples > 1:
            state, actions = self.rollouts.fork(state, samples), actions.repeat_interleave(samples, 0)
        frames, pixels = self.rollouts.follow(state, actions, decode=actions.shape[1])
        return TensorDict.stack([frame.predictions() for frame in frames], 1).set("pixels", pixels)

    @torch.no_grad()
    def outcome(self, state: ImaginedState, actions: Tensor, frames: int = 0) -> Outcome:
        """As WorldModel.outcome; only these frames, and those that become a new context, are decoded."""
        steps, pixels = self.rollouts.follow(state, actions, decode=frames)
        terminated = [step.terminated for step in steps]
        rewards = rewards_until_termination([step.reward for step in steps], terminated)
        return Outcome(rewards, pixels if frames else None, any_terminated(terminated))

    def embedded(self) -> EmbeddedIVideoGPT:
        """As WorldModel.embedded, with conditioning.initial."""
        return EmbeddedIVideoGPT(self, self.rollouts, self.reconstructor, self.plan)

    def reconstruct(self, steps: TensorDictBase) -> Tensor:
        return self.reconstructor.reconstruct(steps)

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        return self.reconstructor.codes(batch)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights in the published layout, which `pretrained` and the loaders in official.py read."""
        initial = "initial" in self.context_keys
        save_parts(folder, self.tokenizer, self.transformer, goal=self.goal_conditioned, initial=initial)

    def freeze_codebooks(self, fixed: bool) -> None:
        """Freeze or unfreeze the codebooks."""
        for quantizer in (self.tokenizer.quantize, self.tokenizer.dynamics_quantize):
            quantizer.fixed = fixed
            quantizer.embedding.weight.requires_grad_(not fixed and quantizer.moving_average is None)

    def _step(self, name: str, batch: TensorDictBase, done: int) -> dict[str, Tensor]:
        """Take one gradient step on one part; returns its metrics."""
        return train_part(self.objectives[name], self._optimizers[name], self.plan, batch, done=done, name=name)
