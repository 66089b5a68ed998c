"""Every row that can stand in the table is explained, and each ending by its own words."""

import pytest

from mbrl.prediction.measures import ENDINGS, MEASURES, describe


@pytest.mark.parametrize("name", ["mse", "psnr", "ssim", "lpips"])
def test_every_frame_measure_and_ending_is_explained(name: str) -> None:
    endings = ["", "_with_context", "_best", "_with_context_best", "_still", "_shuffled", "_zero"]
    texts = {describe(f"{name}{ending}") for ending in [*endings, "_gap_shuffled", "_gap_zero"]}
    assert len(texts) == 9


def test_others() -> None:
    for name in ("fvd", "reward_error", "success_precision_real", "gripper_cm_real", "context_codes_used"):
        assert describe(name)
    assert describe("success_recall_real") == ENDINGS["_real"]
    assert describe("success_recall") == MEASURES["success_recall"]
    with pytest.raises(StopIteration):
        describe("unheard_of")
