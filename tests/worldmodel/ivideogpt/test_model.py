"""IVideoGPT as a world model: what it trains on, what it imagines, and how its schedule resumes."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite

from worldmodel.base import WorldModel
from worldmodel.ivideogpt import precision
from worldmodel.ivideogpt.defects import PublishedDefects
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.precision import bfloat16_gain
from worldmodel.ivideogpt.rollout.decoding import Sampling
from worldmodel.ivideogpt.tokenizer.settings import AutoencoderSizes, Codebooks, CrossAttentionSizes, MovingAverage
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.training import Optimizers, TrainingPlan, decay_groups
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

SIDE, ACTION, SEGMENT, CONTEXT = 16, 2, 6, 2
GREEDY = Sampling(temperature=0.0)


def specs(side: int = SIDE) -> dict[str, Any]:
    pixels = Bounded(0, 255, (3, side, side), dtype=torch.uint8)
    return {"observation_spec": Composite(pixels=pixels), "action_spec": Bounded(-1, 1, (ACTION,))}


def tokenizer() -> CompressiveTokenizer:
    return CompressiveTokenizer(
        resolution=SIDE,
        context_length=CONTEXT,
        patch=2,
        autoencoder=AutoencoderSizes((8, 16), layers_per_block=1, latent_channels=4, norm_groups=4, stem_patch=2),
        cross_attention=CrossAttentionSizes(max_resolution=4, norm_groups=4, heads=2, dropout=0.1),
        codebooks=Codebooks(11, 13, moving_average=MovingAverage(revive_below=0.1)),
    )


def make(seed: int = 0, *, tokenizer_updates: int = 0, every: int = 0, lr: float = 3e-3, **options: Any) -> IVideoGPT:
    torch.manual_seed(seed)
    dropout = options.pop("dropout", 0.0)
    small = partial(VideoTransformer, width=32, layers=2, heads=2, mlp_width=64, attention_dropout=dropout)
    adam = partial(torch.optim.AdamW, lr=lr)
    return IVideoGPT(
        **{**specs(), **options.pop("specs", {})},
        **{"tokenizer": tokenizer, "transformer": small, **options.pop("parts", {})},
        optimizers=Optimizers(tokenizer=adam, transformer=adam, reward_network=adam),
        training=TrainingPlan(tokenizer_updates, every, warmup_updates=2),
        **{"sampling": GREEDY, "segment_length": SEGMENT, **options},
    )


def sequences(rows: int = 4, length: int = SEGMENT) -> TensorDict:
    """Random frames and actions; the reward is three times the first number of the action that earned it."""
    action = torch.rand(rows, length, ACTION) * 2 - 1
    return TensorDict(
        pixels=torch.randint(0, 256, (rows, length, 3, SIDE, SIDE), dtype=torch.uint8),
        action=action,
        next=TensorDict(reward=3 * action[..., :1], batch_size=[rows, length]),
        batch_size=[rows, length],
    )


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def changed(before: list[Tensor], module: torch.nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def rollout(model: IVideoGPT, context: TensorDict, actions: Tensor) -> tuple[Tensor, Tensor]:
    state, frames = model.start(context), []
    for action in actions.unbind(1):
        state, prediction = model.step(state, action)
        frames.append(prediction)
    return torch.stack([f["pixels"] for f in frames], 1), torch.stack([f["reward"] for f in frames], 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_step_gives_pixels_and_real_rewards(precision: str) -> None:
    model = make(precision=precision)
    state, prediction = model.step(model.start(sequences()[:, :CONTEXT]), torch.zeros(4, ACTION))
    assert state.frame == 1 and prediction.batch_size == (4,)
    assert prediction["pixels"].dtype == torch.uint8 and prediction["pixels"].shape == (4, 3, SIDE, SIDE)
    assert prediction["reward"].dtype == torch.float32 and prediction["reward"].shape == (4, 1)


def assert_same_pixels(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for rounding: some processors convolve frames one by one and together in another order of sums, and
    then one pixel in three thousand is seen to be a grey level apart.
    """
    apart = (ours.int() - theirs.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3


def test_predict_equals_steps_and_leaves_the_mode() -> None:
    model = make(dropout=0.5).train()
    batch = sequences()
    actions = torch.randn(4, SEGMENT - CONTEXT, ACTION)
    pixels, rewards = rollout(model, batch[:, :CONTEXT], actions)
    predicted = model.predict(batch[:, :CONTEXT], actions)
    assert_same_pixels(pixels, predicted["pixels"])
    assert torch.equal(rewards, predicted["reward"])
    assert model.training and model.tokenizer.training and model.transformer.training


def test_samples_of_a_prediction_are_rollouts_of_the_same_context() -> None:
    model, batch = make(sampling=Sampling(temperature=1.0)), sequences(2)
    actions = torch.randn(2, 3, ACTION)
    torch.manual_seed(3)
    found = model.predict(batch[:, :CONTEXT], actions, samples=3)
    assert found.batch_size == (6, 3) and found["reward"].shape == (6, 3, 1)
    assert not torch.equal(found["pixels"][0], found["pixels"][1])
    torch.manual_seed(3)
    repeated = batch[:, :CONTEXT].repeat_interleave(3, 0)
    single = model.predict(repeated, actions.repeat_interleave(3, 0))
    assert (found["pixels"].int() - single["pixels"].int()).abs().max() <= 1  # rounding of another batch shape
    torch.manual_seed(3)
    plain = WorldModel.predict(model, batch[:, :CONTEXT], actions, 3)  # step by step
    assert (found["pixels"].int() - plain["pixels"].int()).abs().max() <= 1
    torch.testing.assert_close(found["reward"], plain["reward"])


def test_reconstruction_and_codes_are_the_tokenizers() -> None:
    model, batch = make().train(), sequences(2)
    frames = batch["pixels"].float() / 255
    model.tokenizer.eval()
    expected, quantized, changes = model.tokenizer(frames)
    model.tokenizer.train()
    kept = model.reconstruct(batch[:, :CONTEXT])
    assert torch.equal(kept, (expected[:, :CONTEXT].clamp(0, 1) * 255).round().to(torch.uint8))
    assert torch.equal(model.reconstruct(batch), (expected.clamp(0, 1) * 255).round().to(torch.uint8))
    codes = model.codes(batch)
    assert codes.keys() == {"context", "dynamics"}
    assert torch.equal(codes["context"][0], quantized.codes) and codes["context"][1] == 11
    assert torch.equal(codes["dynamics"][0], changes.codes) and codes["dynamics"][1] == 13
    assert model.training and model.tokenizer.training


def test_forks_equal_separate_rollouts() -> None:
    model, forks = make(), 3
    context, actions = sequences(2)[:, :CONTEXT], torch.randn(2 * forks, 2, ACTION)
    state = model.fork(model.start(context), forks)
    frames = []
    for action in actions.unbind(1):
        state, prediction = model.step(state, action)
        frames.append(prediction["pixels"])
    repeated = TensorDict(pixels=context["pixels"].repeat_interleave(forks, 0), batch_size=[2 * forks, CONTEXT])
    expected, _ = rollout(model, repeated, actions)
    assert (torch.stack(frames, 1).int() - expected.int()).abs().max() <= 1  # rounding of another batch shape


def test_a_state_is_stepped_once_and_imagines_up_to_the_horizon() -> None:
    model = make()
    assert model.max_horizon == SEGMENT - CONTEXT
    first = model.start(sequences()[:, :CONTEXT])
    state, _ = model.step(model.fork(first, 1), torch.zeros(4, ACTION))
    model.step(first, torch.zeros(4, ACTION))
    with pytest.raises(ValueError, match="stepped before"):
        model.step(first, torch.zeros(4, ACTION))
    for _ in range(model.max_horizon - 1):
        state, _ = model.step(state, torch.zeros(4, ACTION))
    with pytest.raises(ValueError, match="reached max_horizon=4"):
        model.step(state, torch.zeros(4, ACTION))


def test_learned_weights_are_used_by_the_next_start() -> None:
    model = make()
    batch = sequences()
    before = rollout(model, batch[:, :CONTEXT], batch["action"][:, :2])[1]
    model.update(batch)
    assert not torch.equal(before, rollout(model, batch[:, :CONTEXT], batch["action"][:, :2])[1])


def test_defect_of_dropout_in_imagination() -> None:
    model = make(dropout=0.5, defects=PublishedDefects(dropout_in_imagination=True))
    batch = sequences()
    rewards = [rollout(model, batch[:, :CONTEXT], batch["action"][:, :2])[1] for _ in range(2)]
    assert not torch.equal(rewards[0], rewards[1])


def reward_error(model: IVideoGPT, updates: int) -> float:
    """Mean absolute error of imagined rewards after training, where a constant guess has 1.5."""
    for _ in range(updates):
        model.update(sequences(16))
    batch = sequences(16)
    _, rewards = rollout(model, batch[:, :CONTEXT], batch["action"][:, CONTEXT - 1 : -1])
    return float((rewards - batch["next", "reward"][:, CONTEXT - 1 : -1]).abs().mean())


@pytest.mark.slow  # 6 s
def test_action_and_reward_belong_to_the_frame_they_lead_to() -> None:
    assert reward_error(make(), 100) < 0.5
    defect = PublishedDefects(rewards_off_by_one=True)
    assert reward_error(make(defects=defect), 100) > 1.2  # the next action is not known yet


def test_schedule() -> None:
    model = make(tokenizer_updates=2, every=2)
    batch = sequences()
    for update in range(6):
        parts = {"tokenizer": model.tokenizer, "transformer": model.transformer}
        codebook = model.tokenizer.quantize.embedding.weight.detach().clone()
        before = {name: weights(part) for name, part in parts.items()}
        metrics = model.update(batch)
        trained = {name for name, part in parts.items() if changed(before[name], part)}
        assert (
            trained
            == [{"tokenizer"}, {"tokenizer"}, {"transformer"}, {"tokenizer", "transformer"}][
                update if update < 2 else 2 + update % 2
            ]
        )
        assert ("tokenizer_loss" in metrics, "code_loss" in metrics) == (
            "tokenizer" in trained,
            "transformer" in trained,
        )
        assert torch.equal(codebook, model.tokenizer.quantize.embedding.weight) == (update >= 2)  # then frozen
        assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())


def test_later_tokenizer_updates_leave_the_codebooks() -> None:
    model, batch = make(tokenizer_updates=1, every=1), sequences()
    model.skip_to(1)
    parts = ("encoder", "cond_encoder", "cond_decoder", "quantize", "dynamics_quantize")
    before = {name: weights(getattr(model.tokenizer, name)) for name in parts}
    for _ in range(2):
        model.update(batch)
    trained = {name for name in before if changed(before[name], getattr(model.tokenizer, name))}
    assert trained == {"encoder", "cond_encoder", "cond_decoder"}


def test_resumes_to_the_bit() -> None:
    model, batch = make(tokenizer_updates=1, every=2, dropout=0.1), sequences()
    for _ in range(3):
        model.update(batch)
    other = make(seed=1, tokenizer_updates=1, every=2, dropout=0.1)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for name, optimizer in other.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(model.optimizers[name].state_dict()))
    results = []
    for resumed in (model, other):
        torch.manual_seed(5)
        results.append([resumed.update(batch) for _ in range(2)])
    for mine, theirs in zip(*results, strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert not changed(weights(model), other)


@pytest.mark.learns
def test_overfits_one_batch() -> None:
    model, batch = make(lr=5e-3), sequences(2)
    for _ in range(120):
        metrics = model.update(batch)
    assert float(metrics["token_accuracy"]) > 0.95
    assert float(metrics["reward_error"]) < 0.2


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    decayed, spared = decay_groups(make().transformer)
    assert all(parameter.dim() == 2 for parameter in decayed["params"])
    assert spared["weight_decay"] == 0.0 and any(parameter.dim() == 2 for parameter in spared["params"])


def test_not_finite_changes_nothing() -> None:
    model, batch = make(), sequences()
    batch["next", "reward"][0, 2] = torch.nan
    before = weights(model)
    with pytest.raises(FloatingPointError, match="the transformer's loss is nan with gradient norm nan: lower"):
        model.update(batch)
    assert not changed(before, model)


@pytest.mark.parametrize(("faster", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_auto_takes_the_faster_precision_of_the_device(
    monkeypatch: pytest.MonkeyPatch, *, faster: bool, dtype: torch.dtype
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: asked.append(device.type) or faster)
    model = make(precision="auto")
    assert not asked, "the model may be moved before it computes"
    assert model.to("meta").dtype == dtype
    assert asked == ["meta"]
    assert make(precision="bfloat16").dtype == torch.bfloat16, "as asked"
    assert len(asked) == 1


def test_a_resumed_model_keeps_the_precision_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "warn_of_slow_bfloat16", lambda: None)
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: True)
    saved = make(precision="auto").state_dict()
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: False)
    model = make(precision="auto")
    model.load_state_dict(saved)
    assert model.dtype == torch.bfloat16
    assert all(part.precision is model.precision for part in (model.rollouts, *model.objectives.values()))
    assert not caplog.records
    other = make(precision="float32")
    other.load_state_dict(saved)
    assert other.dtype == torch.bfloat16
    (message,) = [record.message for record in caplog.records]
    assert message == "the checkpoint was computed in bfloat16 and goes on in it, whatever the setting says"
    with pytest.raises(ValueError, match="precision 'code', which is none of float32, bfloat16"):
        model.load_state_dict({**saved, "_extra_state": {"precision": "code"}})


@pytest.mark.parametrize(("gain", "used"), [(0.5, False), (2.2, True)])
def test_a_cpu_computes_bfloat16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, *, gain: float, used: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # a GPU beside it decides nothing
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: gain)
    assert precision.computes_bfloat16(torch.device("cpu")) is used


@pytest.mark.slow  # 5 s where bfloat16 is slow
def test_measuring_that_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    assert bfloat16_gain() > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("kernels", "gain", "warnings"), [(True, 0.5, 1), (False, 2.2, 1), (True, 1.0, 0)])
def test_a_slow_precision_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, kernels: bool, gain: float, warnings: int
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_kernels", lambda: kernels)
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: gain)
    precision.warn_of_slow_bfloat16.cache_clear()
    for name in ("float32", "bfloat16", "bfloat16"):
        precision.Precision(name).dtype(torch.device("cpu"))
    assert ["worldmodel.precision=float32" in record.message for record in caplog.records] == [True] * warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat"}, "precision 'bfloat' is unknown: did you mean 'bfloat16'"),
        ({"segment_length": 2}, "leaves no future frame"),
        ({"segment_length": 400}, "more than transformer.max_positions=1024"),
        ({"specs": specs(32)}, "set tokenizer.resolution=32"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_batches() -> None:
    model, batch = make(), sequences()
    with pytest.raises(ValueError, match="sequences of 7 frames: this model trains on 3 to 6"):
        model.update(sequences(2, 7))
    with pytest.raises(ValueError, match="needs pixels uint8"):
        model.update(batch.clone().set("pixels", batch["pixels"].float()))
    with pytest.raises(ValueError, match="actions have width 3"):
        model.update(batch.clone().set("action", torch.zeros(4, SEGMENT, 3)))
    with pytest.raises(ValueError, match="a context needs pixels uint8"):
        model.start(batch[:, :1])
    with pytest.raises(ValueError, match=r"actions must be \[4, 2\] here"):
        model.step(model.start(batch[:, :CONTEXT]), torch.zeros(3, ACTION))
    with pytest.raises(ValueError, match="forked into 1 or more"):
        model.fork(model.start(batch[:, :CONTEXT]), 0)


def test_the_temperature_can_change_after_it_is_built() -> None:
    model = make(sampling=Sampling(temperature=1.0, top_k=5)).eval()
    assert (model.temperature, model.trained_horizon) == (1.0, SEGMENT - CONTEXT)
    context, actions = sequences(2)[:, :CONTEXT], torch.zeros(2, 3, ACTION)
    model.set_temperature(0.0)
    assert model.temperature == 0.0
    first, second = model.predict(context, actions), model.predict(context, actions)
    assert (first["pixels"] == second["pixels"]).all()  # greedy
    with pytest.raises(ValueError, match="at least 0"):
        model.set_temperature(-1.0)
    assert model.temperature == 0.0


def test_a_plan_that_never_seeds_the_codebooks_is_refused() -> None:
    with pytest.raises(ValueError, match="never learn from data"):
        TrainingPlan(tokenizer_updates=5, tokenizer_every=0).check(warmup=5)
    with pytest.raises(ValueError, match=r"tokenizer_updates \(0\) must be more"):
        make(every=1)
    TrainingPlan(tokenizer_updates=6, tokenizer_every=1).check(warmup=5)
    TrainingPlan(tokenizer_updates=0, tokenizer_every=0).check(warmup=5)  # the tokenizer stays as it is
