"""Check that the sizes of a model fit together and fit its environment."""

from torchrl.data import Composite

from worldmodel.ivideogpt.segments import SegmentReader
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer


def check_sizes(
    observation_spec: Composite,
    tokenizer: CompressiveTokenizer,
    transformer: VideoTransformer,
    segment_length: int,
    max_horizon: int,
    reader: SegmentReader,
) -> None:
    """Check sizes; arguments as of IVideoGPT, and its reader of batches.

    Raises:
        ValueError: They do not fit; the message names the settings to change.
    """
    resolution, pixels = tokenizer.resolution, tuple(observation_spec["pixels"].shape)
    if pixels[-3:] != (3, resolution, resolution):
        raise ValueError(
            f"the environment's pixels are {list(pixels)} but the tokenizer is made for {resolution}x"
            f"{resolution}: set tokenizer.resolution={pixels[-1]}, or the environment's to {resolution}"
        )
    if reader.context_length < 1:
        raise ValueError("conditioning.goal: the goal takes one place, so set tokenizer.context_length=2 or more")
    context = reader.context_length + reader.goal
    futures = segment_length - context
    if futures < 1 or max_horizon < 1:
        raise ValueError(
            f"segment_length {segment_length} leaves no future frame after a context of {context}: set it to "
            f"{context + 1} or more, and horizon (now {max_horizon}) to 1 or more"
        )
    if reader.initial and max_horizon > futures:
        raise ValueError(
            f"horizon {max_horizon}: after the initial frame a rollout ends with its segment, so set segment_length="
            f"{max_horizon + context} or more, or horizon={futures}"
        )
    tokens, most = tokenizer.layout.prefix + tokenizer.layout.stride * reader.futures, transformer.max_positions
    if tokens > most:
        raise ValueError(
            f"a segment of {segment_length} frames has {tokens} tokens, more than "
            f"transformer.max_positions={most}: raise that, or shorten segment_length"
        )
    robot = transformer.proprioception
    numbers = observation_spec["state"].shape[-1] if "state" in observation_spec.keys() else 0
    if robot is not None and numbers < robot.size:
        raise ValueError(f"transformer.proprioception={robot.size}, but the environment's `state` has {numbers}")
