"""Parallel decoding: what each place of a frame sees, and what it predicts."""

import torch
from torch import Tensor

from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.transformer.queries import FrameQueries, frame_mask
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

# context codes 0-4, dynamics codes 5-11, S1 12, S2 13; 3 tokens a context frame, 2 a future frame
LAYOUT = TokenLayout(context_codes=5, dynamics_codes=7, context_tokens=3, dynamics_tokens=2, context_length=1)


def make() -> VideoTransformer:
    torch.manual_seed(0)
    model = VideoTransformer(LAYOUT, 2, width=16, layers=2, heads=2, mlp_width=24, parallel=True)
    for parameter in model.parameters():  # far from zero, so that nothing is equal by accident
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def segment(dynamics: Tensor) -> Tensor:
    return LAYOUT.join(torch.tensor([[[0, 1, 2]]]), dynamics)


def test_mask_by_hand() -> None:
    seen = frame_mask(LAYOUT, LAYOUT.length(3), torch.zeros(())) == 0
    order = [0, 1, 2, 3, 3, 3, 4, 4, 4]  # three tokens of the context, then a slot and two places a frame
    assert seen.tolist() == [[other <= own for other in order] for own in order]


def test_queries_hold_the_frame_before() -> None:
    queries = FrameQueries(2, 4, std=1.0)
    embedded = torch.arange(9.0)[None, :, None].expand(2, 9, 4)
    read = queries(embedded, LAYOUT)
    places = queries.places.weight.expand(2, 2, 4)
    assert torch.equal(read[:, :4], embedded[:, :4]) and torch.equal(read[:, 6], embedded[:, 6])  # context, slots
    torch.testing.assert_close(read[:, 4:6], queries.first + places)
    torch.testing.assert_close(read[:, 7:], embedded[:, 4:6] + places)  # frame 2 reads the tokens of frame 1


@torch.no_grad()
def test_a_frame_sees_the_frames_before_it_and_not_its_own_tokens() -> None:
    model, actions = make(), torch.randn(1, 3, 2)
    codes = torch.tensor([[[0, 1], [2, 3], [4, 5]]])
    hidden = model.hidden(segment(codes), actions)
    codes[:, 1, 0] = 6
    changed = model.hidden(segment(codes), actions)
    third = LAYOUT.prefix + 2 * LAYOUT.stride
    assert torch.equal(hidden[:, :third], changed[:, :third])
    assert (hidden[:, third:] != changed[:, third:]).any(-1).all()


def test_loss_is_the_cross_entropy_of_each_place() -> None:
    model, actions = make(), torch.randn(1, 2, 2)
    tokens = segment(torch.tensor([[[0, 6], [2, 3]]]))
    logits = model(tokens, actions)[0]
    places = torch.tensor([4, 5, 7, 8])  # of the two frames' tokens
    known = logits[0, places, LAYOUT.context_codes :].log_softmax(-1)
    expected = -known[torch.arange(4), tokens[0, places] - LAYOUT.context_codes].mean()
    losses = model.losses(tokens, actions, None)
    torch.testing.assert_close(losses.code_loss, expected)
    assert losses.hits.tolist() == (known[:, :-2].argmax(-1) + 5 == tokens[0, places]).view(1, 2, 2).tolist()


def test_a_token_that_stays_needs_no_attention() -> None:
    torch.manual_seed(0)
    model = VideoTransformer(LAYOUT, None, width=16, layers=1, heads=2, mlp_width=24, reward_heads=0, parallel=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        codes = torch.randint(0, 7, (16, 1, 2)).expand(-1, 4, -1)
        tokens = LAYOUT.join(torch.randint(0, 5, (16, 1, 3)), codes)
        losses = model.losses(tokens, None, None)
        optimizer.zero_grad()
        losses.code_loss.backward()
        optimizer.step()
    first, later = losses.hits[:, 0].float().mean(), losses.hits[:, 1:].float().mean()
    assert later > 0.95 and first < 0.5  # the first frame cannot be known
