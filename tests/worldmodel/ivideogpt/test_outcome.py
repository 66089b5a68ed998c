"""What planning asks of iVideoGPT: rewards and the last frames, decoded alone, and the weights of another process."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torchrl.modules.functional import symexp

from tests.worldmodel.ivideogpt.test_model import ACTION, CONTEXT, SEGMENT, make, sequences
from worldmodel.base import WorldModel
from worldmodel.ivideogpt.model import IVideoGPT

FORKS = 3


def forked(model: IVideoGPT) -> Any:
    torch.manual_seed(2)
    return model.fork(model.start(sequences(2)[:, :CONTEXT]), FORKS)


@pytest.mark.parametrize("steps", [1, 4, 5, 9])  # 4 are trained; beyond, the newest frames become the context
@pytest.mark.parametrize("shown", [1, 3])
def test_outcome_is_that_of_steps(steps: int, shown: int) -> None:
    model = make(horizon=10)
    actions = torch.randn(2 * FORKS, steps, ACTION)
    shown = min(shown, steps)
    expected = WorldModel.outcome(model, forked(model), actions, shown)  # step by step, each decoded
    found = model.outcome(forked(model), actions, shown)
    torch.testing.assert_close(found.reward, expected.reward)
    assert found.reward.shape == (2 * FORKS, steps)
    assert found.pixels.shape == expected.pixels.shape and found.pixels.shape[:2] == (2 * FORKS, shown)
    assert (found.pixels.int() - expected.pixels.int()).abs().max() <= 1  # rounding of another batch shape
    assert model.outcome(forked(model), actions).pixels is None


@pytest.mark.parametrize("before", [1, 3, 4])
def test_an_outcome_may_begin_in_the_middle_of_a_segment(before: int) -> None:
    model, actions = make(horizon=10), torch.randn(2 * FORKS, 6, ACTION)

    def stepped() -> Any:
        state = forked(model)
        for _ in range(before):
            state, _ = model.step(state, actions[:, 0])
        return state

    expected, found = WorldModel.outcome(model, stepped(), actions, 3), model.outcome(stepped(), actions, 3)
    torch.testing.assert_close(found.reward, expected.reward)
    assert (found.pixels.int() - expected.pixels.int()).abs().max() <= 1


def test_only_what_is_asked_for_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, decoded = make(), []
    decode = model.rollouts.decode_frames
    monkeypatch.setattr(
        model.rollouts,
        "decode_frames",
        lambda state, frames, led: decoded.append(len(frames)) or decode(state, frames, led),
    )
    actions = torch.randn(2 * FORKS, SEGMENT - CONTEXT, ACTION)
    model.outcome(forked(model), actions)
    assert decoded == []
    model.outcome(forked(model), actions, frames=2)
    assert decoded == [2]


@pytest.mark.process
def test_a_model_in_another_process_imagines_with_the_newest_weights() -> None:
    """Processes share the tensors, not the count of their versions."""
    learner, batch = make(), sequences()
    model = copy.deepcopy(learner)
    for mine, theirs in zip(model.parameters(), learner.parameters(), strict=True):
        mine.data = theirs.data
    model.updates = learner.updates
    actions = batch["action"][:, :2]
    before = model.predict(batch[:, :CONTEXT], actions)["reward"]
    learner.update(batch)
    after = model.predict(batch[:, :CONTEXT], actions)["reward"]
    assert not torch.equal(before, after)
    assert torch.equal(after, learner.predict(batch[:, :CONTEXT], actions)["reward"])


def test_a_model_that_has_imagined_can_be_sent_to_a_process() -> None:
    model, context = make(precision="bfloat16"), sequences()[:, :CONTEXT]
    actions = torch.zeros(4, 2, ACTION)
    before = model.predict(context, actions)["reward"]
    assert torch.equal(pickle.loads(pickle.dumps(model)).predict(context, actions)["reward"], before)


@torch.no_grad()
@pytest.mark.parametrize("forks", [1, FORKS])
def test_rewards_of_real_frames_are_those_of_the_forward_pass(forks: int) -> None:
    model, batch = make().eval(), sequences(2)
    segment = model.rollouts.reader(batch)
    tokens = model.tokenizer.tokenize(segment.frames)
    hidden = model.transformer.hidden(tokens, segment.actions, first=model.layout.prefix)
    expected = symexp(model.transformer.rewards(hidden).squeeze(-1))
    state, read = model.fork(model.start(batch[:, :CONTEXT]), forks), []
    for step in range(CONTEXT, SEGMENT):
        rows = batch.repeat_interleave(forks, 0)
        state, prediction = model.observe(state, rows["action"][:, step - 1], rows[:, step])
        assert "pixels" not in prediction.keys()
        read.append(prediction["reward"])
    torch.testing.assert_close(torch.cat(read, 1), expected.repeat_interleave(forks, 0), rtol=1e-3, atol=1e-4)
    assert torch.equal(state.recent, rows["pixels"][:, SEGMENT - CONTEXT :]), "later frames follow the real ones"


def test_a_rollout_of_real_frames_goes_on_beyond_a_segment() -> None:
    model, frames = make(horizon=2 * SEGMENT), sequences(2)
    state = model.start(frames[:, :CONTEXT])
    for _ in range(SEGMENT):
        state, prediction = model.observe(state, frames["action"][:, 0], frames[:, 0])
    assert torch.isfinite(prediction["reward"]).all()
    assert state.anchor > 0
