"""One imagined frame: its tokens drawn one after the other, or together.

R rollout rows, D width, P numbers of the robot's state, n dynamics tokens a frame, E decoders, V codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.ivideogpt.rollout.cache import KeyValueCache
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder, Sampling


class ImaginedFrame(NamedTuple):
    """One frame as E decoders imagined it together."""

    tokens: Tensor  # int64 [R, n] in the segment's numbering
    ends: list[Tensor]  # each decoder's final hidden state [R, D], see VideoTransformer.ends
    entropy: Tensor | None  # [R, 1], nats a token: of all codes, whatever the temperature and top_k
    disagreement: Tensor | None  # [R, 1], nats a token: how much of that entropy is between the decoders


@dataclass(frozen=True)
class Frame:
    """One imagined frame of R rows, not yet decoded."""

    tokens: Tensor  # int64 [R, n]
    reward: Tensor | None  # float32 [R, 1] in real units: the mean over the heads or, once decoded, of the network
    robot: Tensor | None  # float32 [R, P]
    measures: dict[str, Tensor]  # float32 [R, 1]: how unsure the model is, see WorldModel.measures
    ended: Tensor | None = None  # bool [R, 1]: whether the episode terminated on arrival, once decoded

    def beside_pixels(self) -> TensorDict:
        """What the frames have besides their pixels, [R]."""
        named = {"reward": self.reward, "state": self.robot, "terminated": self.ended, **self.measures}
        known = {name: value for name, value in named.items() if value is not None}
        return TensorDict(known, batch_size=self.tokens.shape[:1])


class Choice(NamedTuple):
    """How the codes of a frame are drawn, and whether it says how sure they are; see `imagine`."""

    sampling: Sampling
    measure: bool = False
    any_token: bool = False


class Inputs(NamedTuple):
    """What a whole frame is predicted from, beside weights and caches."""

    embedded: tuple[Tensor, ...]  # each decoder's [R, n + 1, D], which are written to
    uniform: Tensor  # [R * n, 1] in [0, 1), by which the codes are drawn
    places: Tensor  # int64 [n + 1] of the caches


Predict = Callable[[Sequence[CachedDecoder], Sequence[KeyValueCache], Inputs, Choice], ImaginedFrame]


def predict_frame(
    decoders: Sequence[CachedDecoder], caches: Sequence[KeyValueCache], inputs: Inputs, choice: Choice
) -> ImaginedFrame:
    """One pass over all places of a frame, and its tokens [R, n]. The caches hold it then, and do not count it.

    Nothing in here reads a value of a tensor or makes a copy of one on another device, so that a GPU can capture it.
    """
    layout, rows = decoders[0].layout, len(inputs.embedded[0])
    each = zip(decoders, inputs.embedded, caches, strict=True)
    hidden = [decoder.pass_through(x, cache, inputs.places) for decoder, x, cache in each]
    mixed, logits = _mixed(decoders, [h[:, 1:] for h in hidden], choice.any_token)
    tokens = choice.sampling.choose(mixed.flatten(0, 1), inputs.uniform).unflatten(0, (rows, -1))
    ends = [h[:, 0] * decoder.norm for decoder, h in zip(decoders, hidden, strict=True)]
    entropies = torch.stack([_entropy(x) for x in (mixed, *logits)]).mean(-1) if choice.measure else None
    return _frame(tokens + (0 if choice.any_token else layout.context_codes), ends, entropies)


@torch.no_grad()
def imagine(
    decoders: Sequence[CachedDecoder],
    caches: Sequence[KeyValueCache],
    added: Sequence[Tensor | None],
    sampling: Sampling,
    measure: bool = False,
    any_token: bool = False,
    given: Tensor | None = None,
    previous: Tensor | None = None,
    predict: Predict = predict_frame,
) -> ImaginedFrame:
    """One frame: the slot with what it gains, and n sampled codes.

    Of several decoders each code is drawn from the mean of their distributions of this code. Their disagreement is the
    entropy of that mean less the mean of their entropies (Jensen-Shannon divergence).

    Args:
        caches: of R rows, one a decoder; each gains n + 1 tokens.
        added: [R, D] that the frame gains in each decoder (Heads.condition); None for nothing.
        measure: whether entropy and disagreement are wanted.
        any_token: sample from the whole vocabulary, see PublishedDefects.
        given: tokens int64 [R, n] of a real frame, which take the place of sampled ones.
        previous: tokens int64 [R, n] of the frame before it, which decoders read that predict whole frames; None for
            the first after the context.
        predict: predicts whole frames: `predict_frame`, or the same from captured graphs.
    """
    layout, rows = decoders[0].layout, caches[0].keys.shape[1]
    uniform = torch.rand(layout.dynamics_tokens, rows, 1, device=caches[0].keys.device)
    offset = 0 if any_token else layout.context_codes
    if decoders[0].parallel:
        inputs = [decoder.frame(rows, previous, gain) for decoder, gain in zip(decoders, added, strict=True)]
        count = inputs[0].shape[1]
        draws = uniform.transpose(0, 1).flatten(0, 1)
        choice = Choice(sampling, measure, any_token)
        frame = predict(decoders, caches, Inputs(tuple(inputs), draws, caches[0].places(count)), choice)
        for cache in caches:
            cache.filled += count
        return frame if given is None else frame._replace(tokens=given)
    inputs = [decoder.slot(rows, gain) for decoder, gain in zip(decoders, added, strict=True)]
    drawn, found = [], []
    for place, draw in enumerate(uniform):
        mixed, logits = _mixed(decoders, [h[:, 0] for h in _advance(decoders, caches, inputs)], any_token)
        drawn.append(sampling.choose(mixed, draw) + offset if given is None else given[:, place])
        if measure:
            found.append(torch.stack([_entropy(x) for x in (mixed, *logits)]))
        inputs = [decoder.token(drawn[-1], gain) for decoder, gain in zip(decoders, added, strict=True)]
    hidden = _advance(decoders, caches, inputs)
    ends = [h[:, 0] * decoder.norm for decoder, h in zip(decoders, hidden, strict=True)]
    return _frame(torch.stack(drawn, 1), ends, torch.stack(found).mean(0) if measure else None)


def _advance(
    decoders: Sequence[CachedDecoder], caches: Sequence[KeyValueCache], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Normalised states [R, q, D] of each decoder for its inputs."""
    return [decoder.advance(x, cache) for decoder, x, cache in zip(decoders, inputs, caches, strict=True)]


def _mixed(decoders: Sequence[CachedDecoder], hidden: Sequence[Tensor], any_token: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits [..., V] of the mean of the decoders' distributions, and of each; from states [..., D]."""
    logits = [decoder.logits(h, any_token) for decoder, h in zip(decoders, hidden, strict=True)]
    mixed = logits[0] if len(logits) == 1 else torch.stack([x.log_softmax(-1) for x in logits]).logsumexp(0)
    return mixed, logits


def _frame(tokens: Tensor, ends: list[Tensor], entropies: Tensor | None) -> ImaginedFrame:
    """A frame, of the entropies [1 + E, R] of the mean and of each decoder; None where they are not wanted."""
    if entropies is None:
        return ImaginedFrame(tokens, ends, None, None)
    disagreement = (entropies[0] - entropies[1:].mean(0)).clamp(min=0.0)[:, None] if len(ends) > 1 else None
    return ImaginedFrame(tokens, ends, entropies[0, :, None], disagreement)


def _entropy(logits: Tensor) -> Tensor:
    """Nats [...] of the distributions with logits [..., V]."""
    log = logits.log_softmax(-1)
    return -(log.exp() * log).sum(-1)
