"""One imagined frame: its tokens drawn one after the other, or together.

R rollout rows, D width, P numbers of the robot's state, n dynamics tokens a frame, V codes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.ivideogpt.rollout.cache import KeyValueCache
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder, Sampling


class ImaginedFrame(NamedTuple):
    """One frame as a decoder imagined it."""

    tokens: Tensor  # int64 [R, n] in the segment's numbering
    hidden: Tensor  # [R, D], see VideoTransformer.frame_states


@dataclass(frozen=True)
class Frame:
    """One imagined frame of R rows, not yet decoded."""

    tokens: Tensor  # int64 [R, n]
    reward: Tensor | None  # float32 [R, 1] in real units: of the head or, once decoded, of the network
    robot: Tensor | None  # float32 [R, P]
    terminated: Tensor | None = None  # bool [R, 1]: whether the episode terminated on arrival, once decoded

    def predictions(self) -> TensorDict:
        """The predictions besides `pixels`: reward, state and terminated, TensorDict [R]."""
        named = {"reward": self.reward, "state": self.robot, "terminated": self.terminated}
        known = {name: value for name, value in named.items() if value is not None}
        return TensorDict(known, batch_size=self.tokens.shape[:1])


class Choice(NamedTuple):
    """How the codes of a frame are drawn; see `imagine`."""

    sampling: Sampling
    any_token: bool = False


class Inputs(NamedTuple):
    """Inputs of the prediction of a whole frame, besides the weights and the cache."""

    embedded: Tensor  # [R, n + 1, D], which is written to
    uniform: Tensor  # [R * n, 1] in [0, 1), by which the codes are drawn
    places: Tensor  # int64 [n + 1] of the cache


Predict = Callable[[CachedDecoder, KeyValueCache, Inputs, Choice], ImaginedFrame]


def predict_frame(decoder: CachedDecoder, cache: KeyValueCache, inputs: Inputs, choice: Choice) -> ImaginedFrame:
    """One pass over all places of a frame, and its tokens [R, n]. The cache holds it then, and does not count it.

    Nothing in here reads a value of a tensor or makes a copy of one on another device, so that a GPU can capture it.
    """
    hidden = decoder.pass_through(inputs.embedded, cache, inputs.places)
    logits = decoder.logits(hidden[:, 1:], choice.any_token)
    tokens = choice.sampling.choose(logits.flatten(0, 1), inputs.uniform).unflatten(0, (len(hidden), -1))
    offset = 0 if choice.any_token else decoder.layout.context_codes
    return ImaginedFrame(tokens + offset, hidden[:, 0] * decoder.norm)


@torch.no_grad()
def imagine(
    decoder: CachedDecoder,
    cache: KeyValueCache,
    conditioning: Tensor | None,
    sampling: Sampling,
    any_token: bool = False,
    given: Tensor | None = None,
    previous: Tensor | None = None,
    predict: Predict = predict_frame,
) -> ImaginedFrame:
    """One frame: the slot with its conditioning, and n sampled codes.

    Args:
        cache: of R rows; it gains n + 1 tokens.
        conditioning: [R, D] of the frame (Heads.condition); None for none.
        any_token: sample from the whole vocabulary, see PublishedDefects.
        given: tokens int64 [R, n] of a real frame, which take the place of sampled ones.
        previous: tokens int64 [R, n] of the frame before it, which a decoder reads that predicts whole frames; None
            for the first after the context.
        predict: predicts whole frames: `predict_frame`, or the same from captured graphs.
    """
    layout, rows = decoder.layout, cache.keys.shape[1]
    uniform = torch.rand(layout.dynamics_tokens, rows, 1, device=cache.keys.device)
    if decoder.parallel:
        embedded = decoder.frame(rows, previous, conditioning)
        inputs = Inputs(embedded, uniform.transpose(0, 1).flatten(0, 1), cache.places(embedded.shape[1]))
        frame = predict(decoder, cache, inputs, Choice(sampling, any_token))
        cache.filled += len(inputs.places)
        return frame if given is None else frame._replace(tokens=given)
    x, drawn = decoder.slot(rows, conditioning), []
    offset = 0 if any_token else layout.context_codes
    for place, draw in enumerate(uniform):
        logits = decoder.logits(decoder.advance(x, cache)[:, 0], any_token)
        drawn.append(sampling.choose(logits, draw) + offset if given is None else given[:, place])
        x = decoder.token(drawn[-1], conditioning)
    return ImaginedFrame(torch.stack(drawn, 1), decoder.advance(x, cache)[:, 0] * decoder.norm)
