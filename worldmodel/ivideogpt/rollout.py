"""Imagined rollouts: from real context frames, step by step, through one key/value cache.

B contexts, C context frames, R = B * forks rollout rows, A action width, n dynamics tokens a frame.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldmodel.ivideogpt.cache import KeyValueCache
from worldmodel.ivideogpt.decoding import CachedDecoder, Sampling
from worldmodel.ivideogpt.tokenizer import CompressiveTokenizer, Context
from worldmodel.ivideogpt.training import mode
from worldmodel.ivideogpt.transformer import VideoTransformer


@dataclass(frozen=True)
class ImaginedState:
    """Where a rollout stands: R rows after ``frame`` imagined frames.

    The cache is written in place, so a state can be stepped once; fork it to go on twice.
    """

    decoder: CachedDecoder
    cache: KeyValueCache
    codes: Tensor  # int64 [B, C, N], of the contexts
    features: Context  # the contexts, decoded
    frame: int = 0

    @property
    def rows(self) -> int:
        """R."""
        return self.cache.keys.shape[1]


class Rollouts:
    """Starts, advances and forks rollouts of a tokenizer and a transformer that are trained elsewhere.

    Args:
        max_horizon: frames that a rollout may have. dtype: of the large matrix products.
        dropout: a published defect for study: leave the dropout of both parts on while imagining.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        sampling: Sampling,
        *,
        max_horizon: int,
        dtype: torch.dtype,
        dropout: bool = False,
    ) -> None:
        self.tokenizer, self.transformer, self.sampling = tokenizer, transformer, sampling
        self.max_horizon, self.dtype, self.dropout = max_horizon, dtype, dropout
        self._snapshot: CachedDecoder | None = None
        self._snapshot_of: list[tuple[int, int]] = []

    def start(self, pixels: Tensor) -> ImaginedState:
        """Encode context frames uint8 [B, C, 3, R, R] once."""
        side = self.tokenizer.resolution
        expected = (self.tokenizer.context_length, 3, side, side)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"a context needs pixels uint8 [B, {', '.join(map(str, expected))}], "
                f"not {pixels.dtype} {list(pixels.shape)}"
            )
        with self._imagining():
            frames = pixels.float() / 255
            codes, _ = self.tokenizer.encode_context(frames)
            features = self.tokenizer.context_features_for_decoder(codes, frames)
        decoder = self._decoder()
        cache = decoder.encode(self.transformer.layout.join(codes), self.max_horizon)
        return ImaginedState(decoder, cache, codes, features)

    def advance(self, state: ImaginedState, action: Tensor) -> tuple[ImaginedState, Tensor, Tensor | None]:
        """One frame under ``action`` [R, A]: next state, the frame's tokens [R, n], its reward [R, 1]."""
        self._check_fresh(state)
        if state.frame >= self.max_horizon:
            raise ValueError(
                f"this rollout has reached max_horizon={self.max_horizon}: start a new one, or train on "
                "longer segments (segment_length)"
            )
        linear = self.transformer.action_linear
        if linear is not None and tuple(action.shape) != (state.rows, linear.in_features):
            expected = f"[{state.rows}, {linear.in_features}]"
            raise ValueError(f"actions must be {expected} here, not {list(action.shape)}")
        tokens, reward = state.decoder.imagine(state.cache, action, self.sampling)
        return replace(state, frame=state.frame + 1), tokens, reward

    def pixels(self, state: ImaginedState, tokens: Tensor) -> Tensor:
        """Tokens [R, F, n] to pixels uint8 [R, F, 3, side, side]."""
        rows, frames, _ = tokens.shape
        codes = self.transformer.layout.codes(tokens)
        codes = codes.reshape(rows // state.cache.forks, -1, codes.shape[-1])  # forks are decoded as frames
        with self._imagining():
            decoded = self.tokenizer.decode_dynamics(codes, state.features).float()
        pixels = decoded.clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.reshape(rows, frames, *decoded.shape[2:])

    def fork(self, state: ImaginedState, n: int) -> ImaginedState:
        """R * n rows, each row n times in succession, over the same encoded contexts."""
        if n < 1:
            raise ValueError(f"a state can be forked into 1 or more, not {n}")
        self._check_fresh(state)
        return replace(state, cache=state.cache.fork(n))

    def _check_fresh(self, state: ImaginedState) -> None:
        if state.cache.filled != state.frame * self.transformer.layout.stride:
            raise ValueError("this imagined state was stepped before: fork a state to go on from it twice")

    @contextmanager
    def _imagining(self) -> Iterator[None]:
        """The tokenizer without gradients or dropout (unless that is asked for), its products in ``dtype``."""
        device = self.transformer.cos.device.type
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32))
            stack.enter_context(mode(self.tokenizer, self.dropout))
            for quantizer in (self.tokenizer.quantize, self.tokenizer.dynamics_quantize):
                quantizer.eval()  # whatever the dropout: the running statistics give the codes their meaning
            yield

    def forget(self) -> None:
        """The transformer has learned: a fused optimiser does not count its writes, so they cannot be seen."""
        self._snapshot = None

    def _decoder(self) -> CachedDecoder:
        """The transformer's weights as they are now, copied again only where they have changed."""
        versions = [(p.data_ptr(), p._version) for p in self.transformer.parameters()]
        if self._snapshot is None or versions != self._snapshot_of:
            attention_dropout = self.transformer.attention_dropout if self.dropout else 0.0
            self._snapshot = CachedDecoder(self.transformer, self.dtype, attention_dropout)
            self._snapshot_of = versions
        return self._snapshot
