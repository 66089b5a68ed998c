"""The transformer's layout, losses, and decoding through the cache."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchrl.modules.functional import symexp, symlog

from worldmodel.ivideogpt.attention import causal_attention
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.rollout.cache import KeyValueCache
from worldmodel.ivideogpt.rollout.decoding import CachedDecoder, Sampling
from worldmodel.ivideogpt.rollout.frames import imagine as together
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

# context codes 0-4, dynamics codes 5-11, S1 12, S2 13; 3 tokens a context frame, 2 a future frame
LAYOUT = TokenLayout(context_codes=5, dynamics_codes=7, context_tokens=3, dynamics_tokens=2, context_length=2)
GREEDY = Sampling(temperature=0.0)


def make(seed: int = 0, layout: TokenLayout = LAYOUT, parallel: bool = False) -> VideoTransformer:
    torch.manual_seed(seed)
    model = VideoTransformer(layout, 2, width=16, layers=2, heads=2, mlp_width=24, parallel=parallel)
    for parameter in model.parameters():  # far from zero, so that nothing is equal by accident
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def random_context(rows: int) -> Tensor:
    return torch.randint(0, 5, (rows, 2, 3))


@torch.no_grad()
def uncached_rollout(model: VideoTransformer, context: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy dynamics codes [B, H, n] and rewards [B, H, 1], the whole prefix encoded for every token."""
    layout, batch = model.layout, len(context)
    codes = torch.zeros(batch, 0, layout.dynamics_tokens, dtype=torch.int64)
    for step in range(actions.shape[1]):
        frame = torch.zeros(batch, 1, layout.dynamics_tokens, dtype=torch.int64)
        codes = torch.cat([codes, frame], 1)
        for place in range(layout.dynamics_tokens):
            logits, _ = model(layout.join(context, codes), actions[:, : step + 1])
            at = layout.prefix + step * layout.stride + place
            codes[:, step, place] = logits[:, at, layout.context_codes : layout.separator].argmax(-1)
    _, rewards = model(layout.join(context, codes), actions)
    assert rewards is not None
    return codes, symexp(rewards)


@torch.no_grad()
def imagine(
    decoder: CachedDecoder, cache: KeyValueCache, action: Tensor, sampling: Sampling = GREEDY
) -> tuple[Tensor, Tensor]:
    """The next frame's tokens and its reward in real units."""
    frame = together(decoder, cache, decoder.frame_heads.condition(action, None), sampling)
    reward = decoder.frame_heads.rewards(frame.hidden)
    assert reward is not None
    return frame.tokens, symexp(reward)


def cached_rollout(model: VideoTransformer, context: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    decoder = CachedDecoder(model, torch.float32)
    cache = decoder.encode(model.layout.join(context), actions.shape[1])
    steps = [imagine(decoder, cache, action) for action in actions.unbind(1)]
    rewards = torch.stack([reward for _, reward in steps], 1)
    return model.layout.codes(torch.stack([tokens for tokens, _ in steps], 1)), rewards


def test_layout_by_hand() -> None:
    context = torch.tensor([[[0, 1, 2], [3, 4, 0]]])
    dynamics = torch.tensor([[[0, 6], [2, 3]]])
    tokens = LAYOUT.join(context, dynamics)
    assert tokens.tolist() == [[0, 1, 2, 12, 3, 4, 0, 13, 5, 11, 13, 7, 8]]
    assert LAYOUT.length(4) == 13 and LAYOUT.prefix == 7 and LAYOUT.vocabulary == 14
    back = LAYOUT.split(tokens)
    assert torch.equal(back[0], context) and torch.equal(back[1], dynamics)
    assert LAYOUT.codes(torch.tensor([0, 5, 11, 13])).tolist() == [0, 0, 6, 6]


def test_published_lengths() -> None:
    assert TokenLayout(8192, 8192, 256, 16, 2).length(16) == 751
    assert TokenLayout(8192, 8192, 256, 16, 2).length(12) == 683
    assert TokenLayout(8192, 8192, 256, 16, 1).length(16) == 511


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_corrupted_are_a_share_of_the_dynamics_tokens(share: float) -> None:
    torch.manual_seed(0)
    clean = LAYOUT.join(random_context(200), torch.randint(0, 7, (200, 4, 2)))
    noisy = LAYOUT.corrupt(clean, share)
    places = torch.zeros(clean.shape[1], dtype=torch.bool)
    places[[8, 9, 11, 12, 14, 15, 17, 18]] = True  # after slots at 7, 10, 13 and 16
    assert torch.equal(noisy[:, ~places], clean[:, ~places])
    assert noisy[:, places].min() == 5 and noisy[:, places].max() == 11
    changed = (noisy != clean)[:, places].float().mean().item()
    assert changed == pytest.approx(share * 6 / 7, abs=0.03), "one random code in seven is the true one"


def test_noise_is_read_and_the_true_tokens_are_predicted() -> None:
    model, clean = make(), LAYOUT.join(random_context(64), torch.randint(0, 7, (64, 3, 2)))
    actions = torch.zeros(64, 3, 2)
    torch.manual_seed(3)
    found = model.losses(clean, actions, None, token_noise=0.5)
    torch.manual_seed(3)
    hidden = model.hidden(LAYOUT.corrupt(clean, 0.5), actions)
    logits = model.llm.lm_head(hidden)[:, LAYOUT.prefix : -1, LAYOUT.context_codes :]
    expected = F.cross_entropy(logits.flatten(0, 1), clean[:, LAYOUT.prefix + 1 :].flatten() - LAYOUT.context_codes)
    torch.testing.assert_close(found.code_loss, expected)
    assert not torch.isclose(found.code_loss, model.losses(clean, actions, None).code_loss)


def test_loss_positions_by_hand() -> None:
    model = make()
    tokens = LAYOUT.join(random_context(3), torch.randint(0, 7, (3, 2, 2)))
    actions, rewards = torch.randn(3, 2, 2), torch.tensor([[[1.0], [-8.0]]]).expand(3, 2, 1)
    logits, predicted = model(tokens, actions)
    assert predicted is not None
    # 13 tokens: the first slot is at 7, so the supervised tokens are at 8 .. 12, each predicted one place before.
    full = F.cross_entropy(logits[:, 7:12].flatten(0, 1), tokens[:, 8:].flatten())
    losses = model.losses(tokens, actions, rewards, full_vocabulary=True)
    torch.testing.assert_close(losses.code_loss, full)
    restricted = F.cross_entropy(logits[:, 7:12, 5:].flatten(0, 1), tokens[:, 8:].flatten() - 5)
    losses = model.losses(tokens, actions, rewards)
    torch.testing.assert_close(losses.code_loss, restricted)
    hidden = model.hidden(tokens, actions)
    assert model.reward_linear is not None
    by_hand = model.reward_linear(torch.stack([hidden[:, 9], hidden[:, 12]], 1))  # last dynamics token of each frame
    torch.testing.assert_close(predicted, by_hand)
    torch.testing.assert_close(losses.reward_loss, (by_hand - symlog(rewards)).square().mean())
    best = logits[:, [7, 8, 10, 11], 5:12].argmax(-1) + 5
    assert torch.equal(losses.hits.flatten(1), best == tokens[:, [8, 9, 11, 12]])


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_last_layer_may_leave_out_the_first_tokens(parallel: bool, precision: torch.dtype) -> None:
    model = make(parallel=parallel)
    tokens, actions = LAYOUT.join(random_context(3), torch.randint(0, 7, (3, 2, 2))), torch.randn(3, 2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        whole, part = (model.hidden(tokens, actions, first=first) for first in (0, LAYOUT.prefix))
    near = {"atol": 1e-5, "rtol": 1e-5} if precision == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(part, whole[:, LAYOUT.prefix :], **near)


def test_symlog_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, -3.0])
    torch.testing.assert_close(symlog(x), torch.tensor([0.0, 0.6931472, -1.3862944]))
    torch.testing.assert_close(symexp(symlog(x)), x)


def test_both_ways_of_attention_agree() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8) for _ in range(3))
    plain = causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    torch.testing.assert_close(plain.float(), causal_attention(q, k, v), atol=0.05, rtol=0.05)


def test_causal_and_action_reaches_only_its_frame_and_later() -> None:
    model = make()
    tokens = LAYOUT.join(random_context(2), torch.randint(0, 7, (2, 3, 2)))
    actions = torch.randn(2, 3, 2)
    before, _ = model(tokens, actions)
    changed = actions.clone()
    changed[:, 1] += 1.0
    after, _ = model(tokens, changed)
    first = LAYOUT.prefix + LAYOUT.stride  # the slot of the second future frame
    torch.testing.assert_close(before[:, :first], after[:, :first])
    assert (before[:, first:] != after[:, first:]).any(-1).all()


def test_new_action_layer_changes_nothing() -> None:
    torch.manual_seed(0)
    model = VideoTransformer(LAYOUT, 2, width=16, layers=1, heads=2, mlp_width=24)
    tokens = LAYOUT.join(random_context(2), torch.randint(0, 7, (2, 1, 2)))
    logits = [model(tokens, actions)[0] for actions in (torch.zeros(2, 1, 2), torch.randn(2, 1, 2))]
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_cached_decoding_equals_uncached(context_length: int) -> None:
    layout = TokenLayout(5, 7, 3, 2, context_length)
    model = make(context_length, layout)
    context, actions = torch.randint(0, 5, (4, context_length, 3)), torch.randn(4, 3, 2)
    codes, rewards = cached_rollout(model, context, actions)
    expected_codes, expected_rewards = uncached_rollout(model, context, actions)
    assert torch.equal(codes, expected_codes)
    torch.testing.assert_close(rewards, expected_rewards, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_forks_equal_separate_rollouts(steps_before: int) -> None:
    model, forks = make(), 3
    context, actions = random_context(2), torch.randn(2 * forks, 4, 2)
    actions[:, :steps_before] = actions[::forks, :steps_before].repeat_interleave(forks, 0)
    decoder = CachedDecoder(model, torch.float32)
    cache = decoder.encode(model.layout.join(context), 4)
    for step in range(steps_before):
        imagine(decoder, cache, actions[::forks, step])
    forked = cache.fork(forks)
    assert forked.prefix_keys[0].data_ptr() == cache.prefix_keys[0].data_ptr()  # shared, not copied
    got = [imagine(decoder, forked, action) for action in actions[:, steps_before:].unbind(1)]
    codes, rewards = cached_rollout(model, context.repeat_interleave(forks, 0), actions)
    assert torch.equal(LAYOUT.codes(torch.stack([tokens for tokens, _ in got], 1)), codes[:, steps_before:])
    last = got[-1][1]
    torch.testing.assert_close(last, rewards[:, -1], atol=1e-5, rtol=1e-5)


def test_only_dynamics_codes_are_sampled() -> None:
    model = make()
    with torch.no_grad():
        model.llm.lm_head.weight[: LAYOUT.context_codes] += 5.0  # what must not come is what is likely
        model.llm.lm_head.weight[LAYOUT.separator :] += 5.0
    decoder = CachedDecoder(model, torch.float32)
    cache = decoder.encode(LAYOUT.join(random_context(64)), 1)
    tokens, _ = imagine(decoder, cache, torch.randn(64, 2), Sampling())
    assert int(tokens.min()) >= LAYOUT.context_codes and int(tokens.max()) < LAYOUT.separator


def test_sampling_follows_the_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 2.0, 1.0, -4.0]).expand(20000, 4)
    uniform = torch.rand(20000, 1)
    drawn = torch.bincount(Sampling().choose(logits, uniform), minlength=4) / 20000
    torch.testing.assert_close(drawn, logits[0].softmax(-1), atol=0.015, rtol=0)
    drawn = torch.bincount(Sampling(top_k=2).choose(logits, uniform), minlength=4) / 20000
    torch.testing.assert_close(drawn[1:3], torch.tensor([2.0, 1.0]).softmax(-1), atol=0.015, rtol=0)
    assert float(drawn[0] + drawn[3]) == 0.0
    drawn = torch.bincount(Sampling(temperature=0.5).choose(logits, uniform), minlength=4) / 20000
    torch.testing.assert_close(drawn, (logits[0] / 0.5).softmax(-1), atol=0.015, rtol=0)
    edge = Sampling().choose(logits[:2], torch.tensor([[0.0], [1.0 - 2**-24]]))
    assert edge.tolist() == [0, 3]


def test_attention_dropout_is_off_unless_asked_for() -> None:
    torch.manual_seed(0)
    model = make()
    context, actions = random_context(4), torch.randn(4, 2)

    def reward(dropout: float) -> Tensor:
        decoder = CachedDecoder(model, torch.float32, dropout)
        return imagine(decoder, decoder.encode(model.layout.join(context), 1), actions)[1]

    assert torch.equal(reward(0.0), reward(0.0))
    assert not torch.equal(reward(0.5), reward(0.5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"temperature": -1.0}, "temperature must be at least 0"), ({"top_k": 0}, "top_k must be at least 1")],
)
def test_bad_sampling(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**kwargs)  # type: ignore[arg-type]


def test_bad_input() -> None:
    model = make()
    tokens = LAYOUT.join(random_context(1), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="2 future frames need as many actions"):
        model(tokens, torch.zeros(1, 5, 2))
    with pytest.raises(ValueError, match="no segment, which is"):
        model(tokens[:, :-1], torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="multiple of 2"):
        VideoTransformer(LAYOUT, 2, width=10, layers=1, heads=2, mlp_width=8)
    short = VideoTransformer(LAYOUT, 2, width=16, layers=1, heads=2, mlp_width=8, max_positions=12)
    with pytest.raises(ValueError, match="exceeds max_positions=12"):
        short(tokens, torch.zeros(1, 2, 2))
