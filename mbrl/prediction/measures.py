"""Descriptions of the rows in the table of `mbrl predict`."""

MEASURES = {
    "mse": "squared error of pixels in [0, 1], lower is better",
    "psnr": "dB, higher is better",
    "ssim": "structural similarity, higher is better",
    "lpips": "perceptual distance, lower is better",
    "fvd": "distance between real and imagined videos, lower is better",
    "psnr_moving": "dB, of the pixels that differ from the last context frame, higher is better",
    "psnr_moving_reconstructed": "the same for real frames, encoded and decoded: what the tokenizer can show",
    "reward_error": "mean absolute error of the reward of an agent step",
    "reward_steps": "number of steps",
    "reward_true": "mean true reward",
    "reward_mean": "mean predicted reward",
    "reward_correlation": "Pearson's correlation of predicted and true rewards",
    "plan_rank_random": "rank correlation, within starts, of the returns of random plans with the simulator's",
    "plan_rank_policy": "the same of plans of the run's policy, with its exploration",
    "success_threshold": "reward from which a step counts as success",
    "success_precision": "share of imagined successes that are real",
    "success_recall": "share of real successes that are imagined",
    "success_hallucinated": "share of failing steps that are imagined as success",
    "gripper_cm": "distance of the gripper in imagined frames, read by a probe, from its real position",
}
# ending of a row's name -> how it changes the measure. Longer endings come before those that they end with.
ENDINGS = {
    "_with_context_best": "the same with reconstructed context frames, of the best sample, as in published tables",
    "_with_context": "the same with reconstructed context frames included",
    "_codes_perplexity": "codes in effective use",
    "_gap_shuffled": "gain of the true actions over another segment's: above 0, the model uses actions",
    "_codes_used": "share of the codebook in use",
    "_gap_zero": "gain of the true actions over zero actions: above 0, the model uses actions",
    "_observed": "the same, read on real frames",
    "_greedy": "the same at temperature 0",
    "_middle": "the same where the true reward is 2 to 8",
    "_shuffled": "the same under another segment's actions",
    "_still": "the same for a copy of the last real frame",
    "_best": "the same for the best sample",
    "_real": "the same measured on real frames and rewards: the error of the measurement itself",
    "_high": "the same where the true reward is 8 or more",
    "_mean": "the same of the mean of several samples",
    "_zero": "the same under zero actions",
    "_low": "the same where the true reward is below 2",
}


def describe(name: str) -> str:
    """The description of a row, by its name."""
    return MEASURES.get(name) or next(text for ending, text in ENDINGS.items() if name.endswith(ending))
