"""Imagined rollouts: from real context frames, step by step, through one key/value cache.

B contexts, C context frames of the layout (a goal among them), R = B * forks rollout rows, A action width, P numbers of
the robot's state, n dynamics tokens a frame.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules.functional import symexp

from worldmodel.ivideogpt.defects import NO_DEFECTS, PublishedDefects
from worldmodel.ivideogpt.precision import Precision, autocast
from worldmodel.ivideogpt.rewards import RewardNetwork, TokenRewardNetwork, TwoHotRewards
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder, Sampling
from worldmodel.ivideogpt.rollout.frames import Frame, Predict, imagine, predict_frame
from worldmodel.ivideogpt.rollout.state import ImaginedState
from worldmodel.ivideogpt.segments import SegmentReader
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import mode
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer


class Rollouts:
    """Starts, advances and forks rollouts of a tokenizer and a transformer that are trained elsewhere.

    Args:
        segment_frames: imagined frames that the transformer was trained to follow one context with.
        max_horizon: maximum frames of a rollout. After every ``segment_frames`` frames the newest frames are encoded as
            the new context.
        precision: of the large matrix products.
        defects: published defects of rollouts; none by default.
        reward_network: predicts rewards from decoded frames (a RewardNetwork) or from tokens (a
            TokenRewardNetwork), in the place of the head; None: the head does.

    Raises:
        ValueError: the reward network is of another class, or reads tokens that depend on where a segment begins.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        reader: SegmentReader,
        sampling: Sampling,
        segment_frames: int,
        max_horizon: int,
        precision: Precision,
        defects: PublishedDefects = NO_DEFECTS,
        reward_network: TwoHotRewards | None = None,
    ) -> None:
        if not isinstance(reward_network, RewardNetwork | TokenRewardNetwork | None):
            kind = type(reward_network).__name__
            raise ValueError(f"reward_network makes a {kind}: it must make a RewardNetwork or a TokenRewardNetwork")
        if isinstance(reward_network, TokenRewardNetwork) and not reader.initial:
            raise ValueError(
                "a network that predicts rewards from tokens needs a frame to have the same tokens wherever a segment "
                "begins: set agent.world_model.conditioning.initial=true, or choose "
                "reward_network@agent.world_model.reward_network=frames"
            )
        self.frame_rewards = reward_network if isinstance(reward_network, RewardNetwork) else None
        self.token_rewards = reward_network if isinstance(reward_network, TokenRewardNetwork) else None
        self.tokenizer, self.transformer, self.reader, self.sampling = tokenizer, transformer, reader, sampling
        self.layout, self.segment_frames, self.max_horizon = tokenizer.layout, segment_frames, max_horizon
        self.precision, self.defects = precision, defects
        self.predict: Predict = predict_frame  # of whole frames
        self._snapshot: CachedDecoder | None = None
        self._snapshot_of: list[tuple[int, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without the snapshot: another process makes its own, as a CPU's laid out weights cannot be sent."""
        return {**self.__dict__, "_snapshot": None, "_snapshot_of": []}

    def start(self, context: TensorDictBase) -> ImaginedState:
        """Encode real steps [B, C'] once; what they must hold: see SegmentReader.context."""
        pixels, robot = self.reader.context(context)
        if not self.reader.initial:
            return self._encode_context(pixels, robot, frame=0)
        together = _equal_runs(pixels[:, 0])
        state = self._encode_context(pixels[::together], None, frame=1 - self.reader.context_length)
        return self._encode_history(self.fork(state, together), context, robot)

    def _encode_history(self, state: ImaginedState, context: TensorDictBase, robot: Tensor | None) -> ImaginedState:
        """The state after real steps [B, C'], whose frames but the first are appended to the cache as tokens."""
        past, forks = context["pixels"][:, 1:], state.cache.forks
        with self._imagining():
            frames = past.float().unflatten(0, (-1, forks)).flatten(1, 2) / 255  # those of all forks of a row
            codes = self.tokenizer.encode_dynamics(frames, state.encoded).unflatten(1, (forks, -1)).flatten(0, 1)
        states = None if robot is None else self.reader.read_states(context)
        for step, tokens in enumerate(codes.unbind(1)):
            state = replace(state, robot=None if states is None else states[:, step])
            action = context["action"][:, step] if self.transformer.action_linear is not None else None
            state, _ = self.advance(state, action, tokens + self.layout.context_codes)
        return replace(self._after(state, past), robot=robot)

    def _encode_context(self, pixels: Tensor, robot: Tensor | None, frame: int) -> ImaginedState:
        """Encode frames uint8 [B, C, 3, side, side] as the context of a new state, with an empty cache after it."""
        with self._imagining():
            frames = pixels.float() / 255
            codes, encoded = self.tokenizer.encode_context(frames)
            features = self.tokenizer.context_features_for_decoder(codes, frames, painted=False)
        decoder, room = self._decoder(), min(self.segment_frames, self.max_horizon - frame)
        cache = decoder.encode(self.layout.join(codes), room)
        return ImaginedState(decoder, cache, codes, encoded, features, pixels, robot, frame, anchor=frame)

    @torch.no_grad()
    def advance(
        self, state: ImaginedState, action: Tensor | None, given: Tensor | None = None
    ) -> tuple[ImaginedState, Frame]:
        """Sample the tokens of the next frame. `decode_frames` must decode them before the next context.

        Args:
            state: R rows.
            action: [R, A].
            given: tokens int64 [R, n] of a real frame; None samples them.
        """
        self._check_fresh(state)
        if state.frame >= self.max_horizon:
            raise ValueError(
                f"this rollout has reached max_horizon={self.max_horizon}: start a new one, raise `horizon`, or "
                "train on longer segments (segment_length)"
            )
        if action is not None and len(action) != state.rows:
            raise ValueError(f"actions must be [{state.rows}, {action.shape[-1]}] here, not {list(action.shape)}")
        state = self._with_new_context(state)
        frame_heads, before = state.decoder.frame_heads, state.tokens
        action = None if action is None else action.float()
        conditioning, drawn = frame_heads.condition(action, state.robot), (self.sampling, self.defects.any_token)
        found = imagine(state.decoder, state.cache, conditioning, *drawn, given, before, self.predict)
        robot, reward, terminated = (
            frame_heads.states(found.hidden, state.robot),
            frame_heads.rewards(found.hidden),
            None,
        )
        if reward is not None:
            reward = symexp(reward)
        if self.token_rewards is not None and before is not None:
            reward, terminated = self._read_tokens(self.token_rewards, before, found.tokens, action)
        state = replace(state, frame=state.frame + 1, robot=robot, tokens=found.tokens)
        return state, Frame(found.tokens, reward, robot, terminated)

    def decode_frames(
        self, state: ImaginedState, frames: Sequence[Frame], actions: Tensor | None
    ) -> tuple[ImaginedState, list[Frame], Tensor]:
        """Decode the F newest frames.

        Args:
            state: R rows, after these frames.
            frames: the frames.
            actions: [R, F, A] that led to them.

        Returns:
            The state, which knows these frames now; the frames, with the rewards of the reward network if there is
            one; and their pixels uint8 [R, F, 3, side, side].
        """
        pixels = self.pixels(state, torch.stack([frame.tokens for frame in frames], 1))
        return self._after(state, pixels), self._read(state, frames, pixels, actions), pixels

    @torch.no_grad()
    def _read(
        self, state: ImaginedState, frames: Sequence[Frame], pixels: Tensor, actions: Tensor | None
    ) -> list[Frame]:
        """Frames with the rewards of the reward network, from the state before their pixels; see `decode_frames`."""
        if self.frame_rewards is None:
            return list(frames)
        seen = torch.cat([state.recent[:, -1:], pixels], 1)
        with autocast(pixels, self.precision):
            logits = self.frame_rewards.logits(seen, None if actions is None else actions.float())
            rewards = self.frame_rewards.read(logits).unbind(1)
        terminations = self.frame_rewards.terminations(logits)
        terminated = [None] * len(frames) if terminations is None else terminations.unbind(1)
        return [replace(f, reward=r, terminated=t) for f, r, t in zip(frames, rewards, terminated, strict=True)]

    def _read_tokens(
        self, network: TokenRewardNetwork, before: Tensor, after: Tensor, action: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Rewards [R, 1] of steps between tokens [R, n], and whether they terminate the episode."""
        latents = [self.tokenizer.dynamics_quantize.vectors(self.layout.codes(tokens)) for tokens in (before, after)]
        with mode(network, False):
            logits = network.logits(latents[0], latents[1], action)
        return network.read(logits), network.terminations(logits)

    def observe(self, state: ImaginedState, action: Tensor | None, pixels: Tensor) -> tuple[ImaginedState, Frame]:
        """One real frame uint8 [R, 3, side, side], which an action [R, A] led to, in the place of an imagined one."""
        state = self._with_new_context(state)
        with self._imagining():
            frames = pixels.float().view(-1, state.cache.forks, *pixels.shape[1:]) / 255  # forks as frames
            codes = self.tokenizer.encode_dynamics(frames, state.encoded).flatten(0, 1)
        state, frame = self.advance(state, action, codes + self.layout.context_codes)
        shown, actions = pixels.unsqueeze(1), None if action is None else action.unsqueeze(1)
        (frame,) = self._read(state, [frame], shown, actions)
        return self._after(state, shown), frame

    def _with_new_context(self, state: ImaginedState) -> ImaginedState:
        """The state, with the newest frames encoded as a new context if `segment_frames` frames follow the old one."""
        if state.frame - state.anchor < self.segment_frames:
            return state
        return self._encode_context(state.recent, state.robot, state.frame)

    def _after(self, state: ImaginedState, pixels: Tensor) -> ImaginedState:
        """The state with the decoded frames uint8 [R, F, 3, side, side] appended to `recent`."""
        fixed, past = state.recent.tensor_split([self.reader.fixed], 1)
        newest = torch.cat([past, pixels], 1)[:, -past.shape[1] :]
        return replace(state, recent=torch.cat([fixed, newest], 1))

    def follow(self, state: ImaginedState, actions: Tensor, decode: int) -> tuple[list[Frame], Tensor]:
        """Roll out actions [R, H, A]; decode frames in batches: before each new context and at the end.

        With a reward network that reads frames all of them are decoded.

        Args:
            decode: how many of the last frames are wanted as pixels, 0 to H; others are decoded only for a new context.

        Returns:
            H frames, and the pixels uint8 [R, decode, 3, side, side].
        """
        frames: list[Frame] = []
        shown = [state.recent[:, :0]]
        for part in actions.split(self._split_by_context(state, actions.shape[1]), 1):
            done, left = len(frames), actions.shape[1] - len(frames) - part.shape[1]
            for action in part.unbind(1):
                state, frame = self.advance(state, action)
                frames.append(frame)
            wanted = min(part.shape[1], max(decode - left, 0))
            count = max(wanted, min(part.shape[1], self.reader.context_length) if left else 0)
            if self.frame_rewards is not None:
                count = part.shape[1]
            if count:
                state, frames[-count:], pixels = self.decode_frames(state, frames[done:][-count:], part[:, -count:])
                shown.append(pixels[:, pixels.shape[1] - wanted :])
        return frames, torch.cat(shown, 1)

    def _split_by_context(self, state: ImaginedState, count: int) -> list[int]:
        """Split `count` frames by context: first the rest of the current segment, then whole segments."""
        first = self.segment_frames - (state.frame - state.anchor) or self.segment_frames
        ends = [0, *range(first, count, self.segment_frames), count]
        return [end - begin for begin, end in pairwise(ends)]

    def pixels(self, state: ImaginedState, tokens: Tensor) -> Tensor:
        """Decode tokens [R, F, n] of frames after the current context to pixels uint8 [R, F, 3, side, side]."""
        rows, frames, _ = tokens.shape
        codes = self.layout.codes(tokens)
        codes = codes.reshape(rows // state.cache.forks, -1, codes.shape[-1])  # forks are decoded as frames
        with self._imagining():
            decoded = self.tokenizer.decode_dynamics(codes, state.features).float()
        pixels = decoded.clamp(0, 1).mul_(255).round_().to(torch.uint8)
        return pixels.reshape(rows, frames, *decoded.shape[2:])

    def fork(self, state: ImaginedState, n: int) -> ImaginedState:
        """R * n rows, each row n times in succession, over the same encoded contexts."""
        if n < 1:
            raise ValueError(f"a state can be forked into 1 or more, not {n}")
        self._check_fresh(state)
        return replace(
            state,
            cache=state.cache.fork(n),
            recent=state.recent.repeat_interleave(n, 0),
            robot=None if state.robot is None else state.robot.repeat_interleave(n, 0),
            tokens=None if state.tokens is None else state.tokens.repeat_interleave(n, 0),
        )

    def _check_fresh(self, state: ImaginedState) -> None:
        if state.cache.filled != (state.frame - state.anchor) * self.layout.stride:
            raise ValueError("this imagined state was stepped before: fork a state to go on from it twice")

    @contextmanager
    def _imagining(self) -> Iterator[None]:
        """The tokenizer without gradients or dropout (unless that is asked for), its products in ``dtype``."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(autocast(self.transformer.cos, self.precision))
            stack.enter_context(mode(self.tokenizer, self.defects.dropout_in_imagination))
            for quantizer in (self.tokenizer.quantize, self.tokenizer.dynamics_quantize):
                quantizer.eval()  # whatever the dropout: the running statistics give the codes their meaning
            yield

    def drop_snapshot(self) -> None:
        """Drop the weight snapshot after an update, since fused optimisers do not raise `Parameter._version`."""
        self._snapshot = None

    def _decoder(self) -> CachedDecoder:
        """The transformer's weights as they are now, copied again only where they have changed."""
        versions = [(p.data_ptr(), p._version) for p in self.transformer.parameters()]
        if self._snapshot is None or versions != self._snapshot_of:
            dropout = self.transformer.attention_dropout if self.defects.dropout_in_imagination else 0.0
            dtype = self.precision.dtype(self.transformer.cos.device)
            self._snapshot, self._snapshot_of = CachedDecoder(self.transformer, dtype, dropout), versions
        return self._snapshot


def _equal_runs(rows: Tensor) -> int:
    """Length of the runs of equal consecutive rows [B, ...] if all runs are equally long; else 1."""
    new = (rows[1:] != rows[:-1]).flatten(1).any(1).nonzero().flatten() + 1
    starts = torch.cat([new.new_zeros(1), new, new.new_full((1,), len(rows))])
    lengths = starts.diff().unique()
    return int(lengths) if len(lengths) == 1 else 1
