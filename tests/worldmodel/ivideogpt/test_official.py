"""Weights in the published layout: loaded by name, sizes from the tensors, and against recorded outputs."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.modules.functional import symlog

from tests.shared_data import SHARED_DATA
from tests.worldmodel.ivideogpt.test_model import make, sequences, specs
from worldmodel.ivideogpt.defects import PublishedDefects
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.official import load_parts, load_tokenizer, load_transformer, save_parts
from worldmodel.ivideogpt.tokenizer.settings import AutoencoderSizes, Codebooks, CrossAttentionSizes, MovingAverage
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer
from worldmodel.ivideogpt.weights import files as weights

PARITY = SHARED_DATA / "official-parity"
needs_recording = pytest.mark.skipif(
    not PARITY.is_dir(), reason=f"{PARITY} is absent: the recording of the published implementation does not ship"
)
NETS = AutoencoderSizes((32, 64, 64), layers_per_block=1, latent_channels=16, norm_groups=16)
SIZES: list[dict[str, Any]] = [
    {"context_length": 1},
    # smaller than the latents: the decoder's middle block attends alone
    {"cross_attention": CrossAttentionSizes(max_resolution=8)},
    {"autoencoder": replace(NETS, block_out_channels=(32, 64), layers_per_block=2), "resolution": 32},
    {
        "autoencoder": replace(NETS, block_out_channels=(32, 32, 64, 64)),
        "cross_attention": CrossAttentionSizes(max_resolution=32),
        "resolution": 128,
        "context_length": 3,
    },
]


def tokenizer(**changes: Any) -> CompressiveTokenizer:
    """Random weights, all far from zero."""
    made = CompressiveTokenizer(**{"autoencoder": NETS, "codebooks": Codebooks(24, 40), **changes})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def transformer(action_dim: int | None = 4, **changes: Any) -> VideoTransformer:
    sizes = {"width": 48, "layers": 3, "heads": 3, "mlp_width": 80}
    made = VideoTransformer(TokenLayout(24, 40, 256, 16, 2), action_dim, **{**sizes, **changes})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@needs_recording
@torch.no_grad()
def test_recorded_outputs() -> None:
    expected = load_file(PARITY / "expected.safetensors")
    tokens = expected["tokens"]
    made = load_tokenizer(PARITY)
    assert (made.tokenize(expected["frames"]) == tokens).float().mean() >= 0.999
    torch.testing.assert_close(made.detokenize(tokens), expected["reconstruction"], atol=1e-4, rtol=0.0)
    assert load_transformer(PARITY)(tokens)[1] is None
    model = load_transformer(PARITY / "transformer_action_reward.safetensors")
    assert model.heads == 4 and model.layout == made.layout
    logits, rewards = model(tokens, expected["actions"])
    assert rewards is not None
    torch.testing.assert_close(logits[:, -64:], expected["logits_last64"], atol=1e-3, rtol=0.0)
    torch.testing.assert_close(rewards, expected["reward_pred"], atol=1e-4, rtol=0.0)
    for some in (expected["actions"][:, 1:5], expected["actions"][:, :5]):  # those that lead somewhere
        assert torch.equal(model(tokens, some)[0], logits)


@pytest.mark.parametrize("changes", SIZES, ids=str)
@torch.no_grad()
def test_sizes_come_from_the_tensors(changes: dict[str, Any], tmp_path: Path) -> None:
    made = tokenizer(**changes)
    save_file(made.state_dict(), tmp_path / "anything.safetensors")
    (tmp_path / "config.json").write_text('{"norm_num_groups": 16, "num_vq_embeddings": 8192, "resolution": 512}')
    loaded = load_tokenizer(tmp_path)
    assert same(loaded, made) and loaded.layout == made.layout
    rows, future = (1, 1) if made.resolution > 64 else (2, 2)  # of 2 and 2 it takes 4 s
    frames = torch.rand(rows, made.context_length + future, 3, made.resolution, made.resolution)
    tokens = made.tokenize(frames)
    assert torch.equal(loaded.tokenize(frames), tokens)
    context, dynamics = made.layout.split(tokens)
    by_hand, features = made.encode_context(frames[:, : made.context_length])
    assert torch.equal(context, by_hand)
    assert torch.equal(dynamics, made.encode_dynamics(frames[:, made.context_length :], features))
    torch.testing.assert_close(loaded.detokenize(tokens), made(frames)[0], atol=1e-4, rtol=1e-4)


def test_old_names_of_attention(tmp_path: Path) -> None:
    made = tokenizer()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = made.state_dict()
    for now, before in old.items():
        tensors = {name.replace(f"attentions.0.{now}.", f"attentions.0.{before}."): v for name, v in tensors.items()}
    assert any("attentions.0.query" in name for name in tensors)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"norm_num_groups": 16}')
    assert same(load_tokenizer(tmp_path), made)


def test_a_shorter_context_keeps_the_newest_places(tmp_path: Path) -> None:
    made = tokenizer(context_length=3)
    save_parts(tmp_path, made, transformer())
    loaded = load_tokenizer(tmp_path, context_length=2)
    name = "cond_encoder.cross_att_blocks.0.kv_pos_emb"
    places = made.state_dict()[name]
    assert torch.equal(loaded.state_dict()[name], places[len(places) // 3 :])
    assert loaded.tokenize(torch.rand(1, 3, 3, 64, 64)).shape[1] == loaded.layout.length(3)
    with pytest.raises(ValueError, match="these weights know 1 to 3 context frames"):
        load_tokenizer(tmp_path, context_length=4)


def test_own_tokenizers_come_back_whole(tmp_path: Path) -> None:
    made = make().tokenizer.eval()
    save_parts(tmp_path, made, transformer())
    loaded = load_tokenizer(tmp_path)
    nets, codebooks = made.settings["autoencoder"], made.settings["codebooks"]
    assert same(loaded, made)
    assert loaded.settings == made.settings | {"codebooks": replace(codebooks, code_dim=nets.latent_channels)}
    assert loaded.quantize.moving_average == MovingAverage(revive_below=0.1) and loaded.stem_patch == 2
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("reward_heads", [0, 1])
@pytest.mark.parametrize("action_dim", [None, 4])
@torch.no_grad()
def test_every_kind_of_transformer(action_dim: int | None, reward_heads: int, tmp_path: Path) -> None:
    made = transformer(action_dim, reward_heads=reward_heads)
    save_parts(tmp_path, tokenizer(), made)
    loaded = load_transformer(tmp_path)
    assert same(loaded, made) and loaded.layout == made.layout
    if action_dim is None and reward_heads == 0:
        assert "lm_head.weight" in load_file(tmp_path / "transformer" / "model.safetensors")
    tokens = made.layout.join(torch.randint(0, 24, (2, 2, 256)), torch.randint(0, 40, (2, 3, 16)))
    actions = torch.randn(2, 5, 4)
    for mine, theirs in zip(loaded(tokens, actions), made(tokens, actions), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


def test_several_reward_heads_are_refused(tmp_path: Path) -> None:
    save_parts(tmp_path, tokenizer(), transformer(4))
    file = tmp_path / "transformer" / "model.safetensors"
    tensors = load_file(file)
    tensors |= {name: tensors[name].repeat_interleave(3, 0) for name in ("reward_linear.weight", "reward_linear.bias")}
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"transformer: reward_heads \(3\) must be 0 or 1"):
        load_parts(tmp_path, 4)


@torch.no_grad()
def test_a_new_action_layer_changes_nothing_yet(tmp_path: Path) -> None:
    made = transformer(None, reward_heads=0)
    save_file({n.removeprefix("llm."): v for n, v in made.state_dict().items()}, tmp_path / "model.safetensors")
    loaded = load_transformer(tmp_path / "model.safetensors", action_dim=7, heads=3)
    assert loaded.action_linear is not None and loaded.action_linear.in_features == 7
    tokens = made.layout.join(torch.randint(0, 24, (2, 2, 256)), torch.randint(0, 40, (2, 1, 16)))
    torch.testing.assert_close(loaded(tokens, torch.randn(2, 1, 7))[0], made(tokens)[0])


@torch.no_grad()
def test_any_context_length_is_read_off_the_tokens() -> None:
    model = transformer()
    for context in (1, 3):
        layout = TokenLayout(24, 40, 9, 4, context)
        tokens = layout.join(torch.randint(0, 24, (2, context, 9)), torch.randint(0, 40, (2, 3, 4)))
        assert model.layout.read(tokens) == layout
        actions = torch.randn(2, context + 3, 4)
        logits, rewards = model(tokens, actions)
        assert rewards is not None and rewards.shape == (2, 3, 1)
        changed = actions.clone()
        changed[:, context] += 1.0  # leads to the second future frame
        first = layout.prefix + layout.stride
        after = model(tokens, changed)[0]
        torch.testing.assert_close(after[:, :first], logits[:, :first])
        assert (after[:, first:] != logits[:, first:]).any(-1).all()
    with pytest.raises(ValueError, match="are no segment"):
        model(tokens[:, 1:], actions)


def test_every_bad_tensor_is_named(tmp_path: Path) -> None:
    tensors = transformer().state_dict()
    del tensors["llm.model.layers.1.mlp.up_proj.weight"]
    tensors["llm.model.layers.0.self_attn.q_proj.weight"] = torch.zeros(48, 47)
    tensors["mystery"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_transformer(tmp_path, heads=3)
    for part in (
        "missing: llm.model.layers.1.mlp.up_proj.weight",
        "unexpected: mystery",
        "[48, 47] instead of [48, 48]",
    ):
        assert part in str(error.value) and "\n" not in str(error.value)
    tensors = tokenizer().state_dict()
    del tensors["encoder.conv_out.weight"], tensors["quantize.embedding.weight"]
    tensors["decoder.conv_in.weight"] = torch.zeros(64, 17, 3, 3)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"norm_num_groups": 16, "num_vq_embeddings": 24}')
    with pytest.raises(ValueError) as error:
        load_tokenizer(tmp_path)
    for part in ("encoder.conv_out.weight, quantize.embedding.weight", "decoder.conv_in.weight [64, 17, 3, 3]"):
        assert part in str(error.value)


def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_tokenizer(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)  # not in the clone
    with pytest.raises(FileNotFoundError, match=r"nano: the clone holds them.*=/PATH/OF/CLONE/runs/reference/pre"):
        load_tokenizer("runs/reference/pretrained/nano")
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model\.safetensors in"):
        load_tokenizer(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="can run code"):
        load_transformer(tmp_path)
    with pytest.raises(ValueError, match=r"only \.safetensors files are read"):
        load_transformer(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_transformer(tmp_path)
    save_file(transformer().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"action_linear.weight \[48, 4\] instead of \[48, 5\]"):
        load_transformer(tmp_path, action_dim=5, heads=3)
    (tmp_path / "config.json").write_text('{"rope_theta": 500000}')
    with pytest.raises(ValueError, match="rope_theta 500000"):
        load_transformer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_transformer(tmp_path)

    def refuse(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(weights, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"no folder thuml/none here.*ConnectionError: no network\)"):
        load_tokenizer("thuml/none")


def test_hub_ids_are_downloaded_without_what_could_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer()
    save_parts(tmp_path, made, transformer())
    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(weights, "snapshot_download", download)
    assert same(load_tokenizer("thuml/ivideogpt-oxe-64-act-free"), made)
    assert asked[0][0] == "thuml/ivideogpt-oxe-64-act-free"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked[0][1])


def test_an_agent_starts_from_weights(tmp_path: Path) -> None:
    """Fresh heads where there are none, trained ones kept; learning goes on with the transformer."""
    first = make(tokenizer_updates=5)
    save_parts(
        tmp_path, first.tokenizer, VideoTransformer(first.layout, None, width=32, layers=1, heads=2, mlp_width=48)
    )
    model = make(seed=1, tokenizer_updates=5, pretrained=str(tmp_path))
    assert same(model.tokenizer, first.tokenizer)
    assert model.transformer.action_linear is not None and not model.transformer.action_linear.weight.any()
    assert model.transformer.reward_linear is not None and model.transformer.reward_linear.weight.any()
    metrics = model.update(sequences())
    assert "code_loss" in metrics and "tokenizer_loss" not in metrics
    assert model.transformer.action_linear.weight.any()  # it learns
    model.save_pretrained(tmp_path / "own")
    again = make(seed=2, pretrained=str(tmp_path / "own"))
    assert same(again.transformer, model.transformer)
    wider = load_parts(tmp_path / "own", 3)[1]
    assert wider.action_linear is not None and wider.action_linear.weight.shape == (32, 3)
    assert not wider.action_linear.weight.any()


def test_config_is_json_with_the_published_names(tmp_path: Path) -> None:
    save_parts(tmp_path, tokenizer(), transformer())
    config = json.loads((tmp_path / "tokenizer" / "config.json").read_text())
    assert (config["num_vq_embeddings"], config["num_dyn_embeddings"], config["norm_num_groups"]) == (24, 40, 16)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"], config["vocab_size"]) == (48, 3, 66)


@pytest.mark.parametrize("changed", [False, True])
def test_weights_say_where_actions_are_added_and_how_tokens_are_predicted(tmp_path: Path, changed: bool) -> None:
    saved = transformer(condition_tokens=changed, parallel=changed)
    save_parts(tmp_path, tokenizer(), saved)
    loaded = load_parts(tmp_path, 4)[1]
    assert (loaded.condition_tokens, loaded.queries is not None) == (changed, changed)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())


@needs_recording
def test_greedy_rollout_of_loaded_weights() -> None:
    """As recorded, token for token: uint8 frames, tokenizer, cache, reward head and decoder together."""
    expected = load_file(PARITY / "expected.safetensors")
    defects = PublishedDefects(any_token=True)  # the recorded run did not mask the vocabulary
    space = specs(64) | {"action_spec": Bounded(-1, 1, (4,))}
    model = make(pretrained=str(PARITY), specs=space, segment_length=6, defects=defects)
    rewarding = load_transformer(PARITY / "transformer_action_reward.safetensors")
    model.transformer.load_state_dict(rewarding.state_dict())
    pixels = (expected["frames"] * 255).round().to(torch.uint8)
    state = model.start(TensorDict(pixels=pixels[:, :2], batch_size=[2, 2]))
    frames = []
    for action in expected["actions"][:, 1:5].unbind(1):
        state, frame = model.rollouts.advance(state, action)
        frames.append(frame)
    tokens = torch.stack([frame.tokens for frame in frames], 1)
    assert torch.equal(tokens, expected["rollout_tokens"])
    rewards = torch.cat([frame.reward for frame in frames if frame.reward is not None], 1)
    torch.testing.assert_close(symlog(rewards), expected["rollout_rewards"], atol=1e-4, rtol=0.0)
    shown = model.rollouts.pixels(state, tokens).float() / 255
    torch.testing.assert_close(shown, expected["rollout_frames"], atol=0.5 / 255 + 1e-4, rtol=0.0)


def test_settings_that_the_weights_overrule_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tokenizer_updates=5).save_pretrained(tmp_path)
    nets = AutoencoderSizes((8, 16), layers_per_block=3, latent_channels=4, norm_groups=4, stem_patch=2)
    asked = partial(CompressiveTokenizer, resolution=32, autoencoder=nets)
    make(tokenizer_updates=5, pretrained=str(tmp_path), parts={"tokenizer": asked})
    (message,) = [record.message for record in caplog.records]
    assert message == (
        "the weights overrule the settings: tokenizer.resolution 16 (not 32), "
        "tokenizer.autoencoder.layers_per_block 1 (not 3)"
    )
