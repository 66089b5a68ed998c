"""Defects of the published implementation that can be switched on, so that a study can measure their effect."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedDefects:
    """Four defects of the published implementation; each is off by default.

    Source: github.com/thuml/iVideoGPT, whose model-based RL loop imagines in `mbrl/video_predictor.py`. The effect of
    the first two on the return has not been published.

    Args:
        dropout_in_imagination: Leave dropout on during rollouts. The published loop never puts the world model in eval
            mode.
        rewards_off_by_one: Train the reward of a frame on the reward of the transition after it. The action of that
            transition is not known at that frame.
        any_token: Sample from the whole vocabulary. Context codes and separators are then drawn in place of dynamics
            codes, and are fed back as they are. The nearest dynamics code is decoded.
        full_vocabulary_loss: Compute the cross-entropy over the whole vocabulary, with the context codes, which never
            occur at the supervised positions. This doubles the memory of the logits.
    """

    dropout_in_imagination: bool = False
    rewards_off_by_one: bool = False
    any_token: bool = False
    full_vocabulary_loss: bool = False


NO_DEFECTS = PublishedDefects()
