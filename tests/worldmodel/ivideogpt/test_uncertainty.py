"""What the model says of how unsure it is: known answers, and nothing changes by saying it."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from tests.worldmodel.ivideogpt.test_model import CONTEXT, make, sequences
from tests.worldmodel.ivideogpt.test_variants import imagine
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.official import load_parts
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder, Sampling
from worldmodel.ivideogpt.rollout.frames import imagine as together
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

LAYOUT = TokenLayout(context_codes=3, dynamics_codes=4, context_tokens=2, dynamics_tokens=3, context_length=1)


def several(heads: int = 3, **options: Any) -> IVideoGPT:
    small = partial(VideoTransformer, width=32, layers=2, heads=2, mlp_width=64, reward_heads=heads)
    return make(parts={"transformer": small}, **options)


def sure_of(code: int | None) -> CachedDecoder:
    """A decoder that always expects one code; of None, all four alike."""
    torch.manual_seed(0)
    model = VideoTransformer(LAYOUT, None, width=8, layers=1, heads=2, mlp_width=8, reward_heads=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.llm.model.norm.weight.fill_(1.0)
        model.llm.model.embed_tokens.weight.fill_(1.0)  # the normalised state is ones
        if code is not None:
            model.llm.lm_head.weight[LAYOUT.context_codes + code] = 10.0
    return CachedDecoder(model, torch.float32)


def measures(*decoders: CachedDecoder) -> tuple[float, float | None]:
    tokens = LAYOUT.join(torch.zeros(2, 1, 2, dtype=torch.int64))
    caches = [decoder.encode(tokens, 1) for decoder in decoders]
    frame = together(decoders, caches, [None] * len(decoders), Sampling(), measure=True)
    assert frame.entropy is not None and frame.entropy.shape == (2, 1)
    disagreement = None if frame.disagreement is None else float(frame.disagreement[0])
    return float(frame.entropy[0]), disagreement


def test_entropy_and_disagreement_by_hand() -> None:
    assert measures(sure_of(None)) == (pytest.approx(math.log(4)), None)
    assert measures(sure_of(1)) == (pytest.approx(0.0, abs=1e-6), None)
    same = measures(sure_of(1), sure_of(1))
    assert same == (pytest.approx(0.0, abs=1e-5), pytest.approx(0.0, abs=1e-5))
    apart = measures(sure_of(1), sure_of(2))  # each is sure, and of another code
    assert apart == (pytest.approx(math.log(2), abs=1e-4), pytest.approx(math.log(2), abs=1e-4))
    vague = measures(sure_of(None), sure_of(None))  # unsure, and agreed on it
    assert vague == (pytest.approx(math.log(4), abs=1e-4), pytest.approx(0.0, abs=1e-5))


def test_saying_so_changes_nothing() -> None:
    batch = sequences()
    rollouts: list[list[Any]] = []
    for uncertainty in (False, True):
        model = make(uncertainty=uncertainty, sampling=Sampling())
        torch.manual_seed(7)
        rollouts.append(imagine(model, batch[:, :CONTEXT], batch["action"][:, :3]))
        assert model.measures == (("token_entropy",) if uncertainty else ())
    for quiet, telling in zip(*rollouts, strict=True):
        assert (telling.exclude("token_entropy") == quiet).all()
        assert "token_entropy" not in quiet.keys() and telling["token_entropy"].shape == (4, 1)


@pytest.mark.learns
def test_reward_heads_disagree_where_there_are_no_data() -> None:
    """Trained on actions in [-1, 1], heads come to agree there, and not five times as far out."""
    model = several(uncertainty=True, lr=5e-3)
    assert model.measures == ("token_entropy", "reward_std")
    untrained = spread(model, 1.0)
    for _ in range(200):
        model.update(sequences(16))
    assert spread(model, 1.0) < 0.2 * untrained and spread(model, 5.0) > 4 * spread(model, 1.0)


def spread(model: IVideoGPT, scale: float) -> float:
    """Mean standard deviation of the heads' rewards for the first imagined step."""
    batch = sequences(64)
    return float(imagine(model, batch[:, :CONTEXT], scale * batch["action"][:, :1])[0]["reward_std"].mean())


@pytest.mark.learns
def test_transformers_learn_and_imagine_together(tmp_path: Any) -> None:
    model = several(heads=1, ensemble=2, uncertainty=True, lr=5e-3)
    assert model.measures == ("token_entropy", "reward_std", "disagreement")
    first, second = model.transformer, model.others[0]
    assert not torch.equal(first.llm.lm_head.weight, second.llm.lm_head.weight)
    batch = sequences(2)
    before = [p.detach().clone() for p in second.parameters()]
    for _ in range(100):
        metrics = model.update(batch)
    assert any(not torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))
    assert float(metrics["token_accuracy"]) > 0.9
    frames = imagine(model, batch[:, :CONTEXT], batch["action"][:, CONTEXT - 1 : -1])
    known = torch.stack([frame["disagreement"] for frame in frames]).mean()
    strange = imagine(model, sequences(2)[:, :CONTEXT], torch.randn(2, 4, 2) * 5)
    assert torch.stack([frame["disagreement"] for frame in strange]).mean() > 3 * known
    assert frames[0]["reward_std"].shape == frames[0]["disagreement"].shape == (2, 1)
    model.save_pretrained(tmp_path)
    _, loaded = load_parts(tmp_path, 2, members=2)
    assert torch.equal(loaded[1].llm.lm_head.weight, second.llm.lm_head.weight)
    with pytest.raises(ValueError, match=r"ensemble=3 transformers were asked for, and .* holds 2"):
        load_parts(tmp_path, 2, members=3)


def test_forks_of_an_ensemble() -> None:
    model, batch = several(ensemble=2), sequences(2)
    state = model.fork(model.start(batch[:, :CONTEXT]), 3)
    state, prediction = model.step(state, torch.zeros(6, 2))
    assert prediction["pixels"].shape[0] == 6 and [cache.forks for cache in state.caches] == [3, 3]


def test_bad_ensemble() -> None:
    with pytest.raises(ValueError, match="ensemble must be 1"):
        several(ensemble=0)
