"""What each row of the table of `mbrl predict` says, in a few words."""

MEASURES = {
    "mse": "squared error of pixels in [0, 1], lower is better",
    "psnr": "dB, higher is better",
    "ssim": "structural similarity, higher is better",
    "lpips": "perceptual distance, lower is better",
    "fvd": "distance between real and imagined videos, lower is better",
    "reward_error": "mean |error| of an agent step's reward",
    "success_threshold": "the reward from which a step counts as success",
    "success_precision": "of steps imagined as success, the share that were",
    "success_recall": "of successful steps, the share imagined so",
    "success_hallucinated": "of failing steps, the share imagined as success",
    "gripper_cm": "gripper's distance from where it was, as a probe reads it off the frames",
}
# longest first: what a name ends with, and how it changes the measure before it
ENDINGS = {
    "_with_context_best": "the same, reconstructed context frames counted in and the best sample taken, as published",
    "_with_context": "the same, reconstructed context frames counted in",
    "_codes_perplexity": "codes in effective use",
    "_gap_shuffled": "what true actions gain over another segment's: above 0 they are heeded",
    "_codes_used": "share of the codebook in use",
    "_gap_zero": "what true actions gain over none: above 0 they are heeded",
    "_shuffled": "the same under another segment's actions",
    "_still": "the same for a copy of the last real frame",
    "_best": "the same for the best sample",
    "_real": "the same read off real frames and rewards: the judge's own error",
    "_zero": "the same under zero actions",
}


def describe(name: str) -> str:
    """The description of a row, by its name."""
    return MEASURES.get(name) or next(text for ending, text in ENDINGS.items() if name.endswith(ending))
