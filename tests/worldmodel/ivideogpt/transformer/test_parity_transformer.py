"""The transformer against what the published implementation computed from the same weights."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.shared_data import SHARED_DATA
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder, Sampling
from worldmodel.ivideogpt.rollout.frames import imagine
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

DATA = SHARED_DATA / "official-parity"
LAYOUT = TokenLayout(96, 64, 256, 16, 2)
PUBLISHED = TokenLayout(8192, 8192, 256, 16, 2)
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason=f"recorded outputs of the published implementation are not at {DATA}"
)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(DATA / "expected.safetensors")


@pytest.fixture(scope="module")
def transformer() -> VideoTransformer:
    model = VideoTransformer(LAYOUT, 4, width=64, layers=2, heads=4, mlp_width=160)
    model.load_state_dict(load_file(DATA / "transformer_action_reward.safetensors"))
    return model.eval()


@needs_data
@torch.no_grad()
def test_logits_loss_and_rewards(transformer: VideoTransformer, expected: dict[str, Tensor]) -> None:
    tokens, actions = expected["tokens"], expected["actions"][:, 1:5]
    logits, rewards = transformer(tokens, actions)
    assert rewards is not None
    torch.testing.assert_close(logits[:, -64:], expected["logits_last64"], atol=1e-3, rtol=0)
    torch.testing.assert_close(rewards, expected["reward_pred"], atol=1e-4, rtol=0)
    loss = transformer.losses(tokens, actions, None, full_vocabulary=True).code_loss
    assert abs(float(loss - expected["lm_loss"])) < 1e-3


@needs_data
def test_supervised_positions_are_the_published_ones(expected: dict[str, Tensor]) -> None:
    labels = expected["labels"]
    supervised = torch.zeros_like(labels, dtype=torch.bool)
    supervised[:, LAYOUT.prefix + 1 :] = True
    assert torch.equal(labels != -100, supervised)


@needs_data
def test_action_free_weights_load(expected: dict[str, Tensor]) -> None:
    model = VideoTransformer(LAYOUT, None, width=64, layers=2, heads=4, mlp_width=160, reward_heads=0)
    model.llm.load_state_dict(load_file(DATA / "transformer" / "model.safetensors"))
    with torch.no_grad():
        logits, rewards = model(expected["tokens"])
    assert logits.shape[-1] == 162 and rewards is None


@needs_data
def test_greedy_rollout_through_the_cache(transformer: VideoTransformer, expected: dict[str, Tensor]) -> None:
    decoder = CachedDecoder(transformer, torch.float32)
    cache = decoder.encode(expected["tokens"][:, : LAYOUT.prefix], 4)
    greedy = Sampling(temperature=0.0)
    tokens, rewards = [], []
    for action in expected["actions"][:, 1:5].unbind(1):
        with torch.no_grad():
            conditioning = decoder.frame_heads.condition(action, None)
            frame = imagine(decoder, cache, conditioning, greedy, any_token=True)  # the recorded run had no mask
            reward = decoder.frame_heads.rewards(frame.hidden)
        assert reward is not None
        tokens.append(frame.tokens)
        rewards.append(reward)
    assert torch.equal(torch.stack(tokens, 1), expected["rollout_tokens"])
    torch.testing.assert_close(torch.cat(rewards, 1), expected["rollout_rewards"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "mlp_width", "parameters"),
    [(768, 12, 12, 3072, 138_434_304), (1024, 24, 16, 4096, 436_261_888)],
)
def test_published_sizes(width: int, layers: int, heads: int, mlp_width: int, parameters: int) -> None:
    sizes = {"width": width, "layers": layers, "heads": heads, "mlp_width": mlp_width}
    with torch.device("meta"):
        model = VideoTransformer(PUBLISHED, None, reward_heads=0, **sizes)
    assert sum(p.numel() for p in model.parameters()) == parameters
