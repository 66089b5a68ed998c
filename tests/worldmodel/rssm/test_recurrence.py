"""The recurrence of DreamerV3: blocks, resets, unimix, and one step against many."""

import pytest
import torch
from torch.nn import functional as F
from torchrl.modules.models.model_based import RSSMPosteriorV3, RSSMPriorV3

from worldmodel.rssm.recurrence import BlockLinear, Latent, Recurrence, mixed, noise, sample

A, E, D, H, S, K, G = 2, 5, 16, 6, 3, 4, 4


def small(unimix: float = 0.01) -> Recurrence:
    torch.manual_seed(0)
    return Recurrence(
        actions=A, embedding=E, deter=D, hidden=H, stoch=S, classes=K, blocks=G, unimix=unimix
    )  # fmt: skip


def some(batch: int, time: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, time, E), torch.rand(batch, time, A) * 2 - 1, torch.zeros(batch, time, dtype=torch.bool)


def a_state(batch: int) -> Latent:
    return Latent(torch.randn(batch, D), F.one_hot(torch.randint(K, (batch, S)), K).float())


def test_a_block_linear_layer_is_a_dense_layer_for_each_block():
    layer = BlockLinear(6, 4, 2)
    torch.nn.init.normal_(layer.bias)
    values = torch.randn(3, 6)
    for block in range(2):
        part = values[:, 3 * block : 3 * block + 3]
        dense = F.linear(part, layer.weight[block].T, layer.bias[block, 0])
        torch.testing.assert_close(layer(values)[:, block], dense)
    with pytest.raises(ValueError, match="do not divide"):
        BlockLinear(6, 4, 4)


def test_the_whole_is_what_torchrl_computes():
    """Prior and posterior of TorchRL's modules with the same weights: the layers in two pieces are one layer."""
    ours = small()
    prior = RSSMPriorV3(
        action_shape=(A,), action_dim=A, hidden_dim=H, rnn_hidden_dim=D, num_categoricals=S, num_classes=K,
        recurrent_model="block_gru", num_blocks=G, unimix=0.01,
    )  # fmt: skip
    posterior = RSSMPosteriorV3(H, S, K, D, E, use_rms_norm=True, unimix=0.01)
    gru = prior.rnn
    with torch.no_grad():
        for theirs, mine in (
            (gru.belief_projection, ours.gru.from_deter),
            (gru.state_projection, ours.gru.from_stoch),
            (gru.action_projection, ours.gru.from_action),
            (prior.rnn_to_prior_projector[:3], ours.prior_head[0]),
            (prior.rnn_to_prior_projector[3:6], ours.prior_head[1]),
            (prior.rnn_to_prior_projector[6], ours.prior_head[2]),
            (posterior.obs_rnn_to_post_projector[3], ours.posterior_head),
        ):
            for parameter, own in zip(theirs.parameters(), mine.parameters(), strict=True):
                parameter.copy_(own)
        # their first layer's input, for each block: its own part of the state, then all of the projections
        gru.hidden_layers[0].weight[:, : D // G] = ours.gru.own.weight
        gru.hidden_layers[0].weight[:, D // G :] = ours.gru.shared.weight.unflatten(0, (G, D // G)).transpose(1, 2)
        gru.hidden_layers[0].bias.copy_(ours.gru.shared.bias)
        gru.gates.weight.copy_(ours.gru.gates.weight)
        gru.gates.bias.copy_(ours.gru.gates.bias.flatten())
        joint = posterior.obs_rnn_to_post_projector[0]
        joint.weight.copy_(torch.cat((ours.of_deter.weight, ours.of_embedding.weight), 1))
        joint.bias.copy_(ours.of_embedding.bias)
        before, (embedding, action, is_init) = a_state(5), some(5, 1)
        latent, seen = ours.observe(embedding, action, is_init, before)
        prior_logits, belief = prior._belief_and_logits(before.stoch.flatten(1), before.deter, action[:, 0])
        posterior_logits, _ = posterior(belief, embedding[:, 0])
    torch.testing.assert_close(latent.deter[:, 0], belief)
    torch.testing.assert_close(ours.prior(belief), mixed(prior_logits, 0.01))
    torch.testing.assert_close(seen[:, 0], mixed(posterior_logits, 0.01))


def test_unimix_by_hand():
    logits = torch.tensor([0.0, torch.inf]).nan_to_num()  # all on the second
    torch.testing.assert_close(mixed(logits, 0.01), torch.tensor([0.005, 0.995]))
    assert mixed(torch.randn(100, K) * 50, 0.01).min() >= 0.01 / K - 1e-7


@pytest.mark.parametrize("classes", [4, 16])
def test_probabilities_and_their_gradients_are_those_of_the_softmax(classes: int):
    torch.manual_seed(0)
    logits, weights = torch.randn(5, S, classes, requires_grad=True), torch.randn(5, S, classes)
    found, expected = mixed(logits, 0.01), logits.softmax(-1) * 0.99 + 0.01 / classes
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = (torch.autograd.grad((values * weights).sum(), logits) for values in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_samples_have_their_probabilities_and_pass_the_gradient_straight_on():
    torch.manual_seed(0)
    probabilities = torch.tensor([[0.1, 0.2, 0.7]]).requires_grad_()
    drawn = sample(probabilities.expand(20_000, 1, 3), noise(20_000, 1, 3, like=probabilities))
    assert ((drawn == 0) | (drawn == 1)).all() and (drawn.sum(-1) == 1).all()
    torch.testing.assert_close(drawn.mean((0, 1)), torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)
    (drawn * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.testing.assert_close(probabilities.grad, 20_000 * torch.tensor([[1.0, 2.0, 3.0]]))


def test_step_by_step_is_all_at_once():
    recurrence, before, (embedding, action, is_init) = small(), a_state(2), some(2, 6)
    is_init[1, 3] = True
    exponential = noise(2, 6, S, K, like=embedding)
    together, posteriors = recurrence.observe(embedding, action, is_init, before, exponential)
    state = before
    for t in range(6):
        at = slice(t, t + 1)
        latent, posterior = recurrence.observe(
            embedding[:, at], action[:, at], is_init[:, at], state, exponential[:, at]
        )
        state = Latent(latent.deter[:, 0], latent.stoch[:, 0])
        torch.testing.assert_close(state.deter, together.deter[:, t])
        assert torch.equal(state.stoch, together.stoch[:, t])
        torch.testing.assert_close(posterior[:, 0], posteriors[:, t])


def test_an_episode_that_begins_forgets_what_was_before():
    recurrence, (embedding, action, is_init) = small(), some(2, 4)
    is_init[0, 2] = True
    exponential = noise(2, 4, S, K, like=embedding)
    one, _ = recurrence.observe(embedding, action, is_init, a_state(2), exponential)
    other, _ = recurrence.observe(embedding, action.flip(0), is_init, a_state(2), exponential)
    assert not torch.equal(one.deter[0, 1], other.deter[0, 1])
    action_after = action.clone()
    action_after[0, :3] = action.flip(0)[0, :3]  # what led to the first observation, and before it
    again, _ = recurrence.observe(embedding, action_after, is_init, a_state(2), exponential)
    assert torch.equal(one.deter[0, 2:], again.deter[0, 2:])
    assert not torch.equal(one.deter[1, 2:], other.deter[1, 2:])


def test_what_is_imagined_continues_from_the_posterior():
    """One step under an action: the deterministic state is the one that observing would have, whatever is seen."""
    recurrence, (embedding, action, is_init) = small(), some(3, 2)
    latent, _ = recurrence.observe(embedding, action, is_init, recurrence.initial(3))
    imagined = recurrence.imagine(Latent(latent.deter[:, 0], latent.stoch[:, 0]), action[:, 1])
    torch.testing.assert_close(imagined.deter, latent.deter[:, 1])
    assert (imagined.stoch.sum(-1) == 1).all()


def test_the_initial_weights_of_a_layer_in_pieces_are_those_of_the_whole():
    recurrence = Recurrence(
        actions=A, embedding=900, deter=1024, hidden=64, stoch=4, classes=4, blocks=8, unimix=0.01
    )  # fmt: skip
    assert recurrence.of_embedding.weight.std().item() == pytest.approx((900 + 1024) ** -0.5, rel=0.03)
    assert recurrence.gru.own.weight.std().item() == pytest.approx((1024 + 3 * 64 * 8) ** -0.5, rel=0.03)
