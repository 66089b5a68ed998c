"""The tokenizer against what the published implementation computes from the same random weights."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.shared_data import SHARED_DATA
from worldmodel.ivideogpt.tokenizer.settings import AutoencoderSizes, Codebooks, CrossAttentionSizes
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer

PARITY = SHARED_DATA / "official-parity"
CONTEXT = 2

needs_recording = pytest.mark.skipif(
    not PARITY.is_dir(), reason=f"{PARITY} is absent: the recording of the published implementation does not ship"
)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(PARITY / "expected.safetensors")


@pytest.fixture(scope="module")
def tokenizer() -> CompressiveTokenizer:
    config = json.loads((PARITY / "tokenizer" / "config.json").read_text())
    made = CompressiveTokenizer(
        resolution=config["resolution"],
        context_length=config["context_length"],
        autoencoder=AutoencoderSizes(
            block_out_channels=config["block_out_channels"],
            layers_per_block=config["layers_per_block"],
            latent_channels=config["latent_channels"],
            norm_groups=config["norm_num_groups"],
        ),
        cross_attention=CrossAttentionSizes(max_resolution=config["max_att_resolution"]),
        codebooks=Codebooks(config["num_vq_embeddings"], config["num_dyn_embeddings"]),
    )
    made.load_state_dict(load_file(PARITY / "tokenizer" / "diffusion_pytorch_model.safetensors"))
    return made.eval()


@needs_recording
@torch.no_grad()
def test_tokens_are_the_published_ones(tokenizer: CompressiveTokenizer, expected: dict[str, Tensor]) -> None:
    """Published layout: [N] separator [N], then for each future frame a separator and [n] codes, offset."""
    frames = expected["frames"]
    codes, context = tokenizer.encode_context(frames[:, :CONTEXT])
    dynamics = tokenizer.encode_dynamics(frames[:, CONTEXT:], context)
    size, n = tokenizer.context_tokens, tokenizer.dynamics_tokens
    past = expected["tokens"][:, : CONTEXT * (size + 1) - 1]
    past = torch.cat([past, past[:, :1]], 1).view(len(frames), CONTEXT, size + 1)[..., :size]
    future = expected["tokens"][:, CONTEXT * (size + 1) - 1 :].view(len(frames), -1, n + 1)[..., 1:]
    assert (codes == past).float().mean() >= 0.999
    assert (dynamics + tokenizer.context_codes == future).float().mean() >= 0.999


@needs_recording
@torch.no_grad()
def test_reconstruction_and_losses_are_the_published_ones(
    tokenizer: CompressiveTokenizer, expected: dict[str, Tensor]
) -> None:
    output, context, dynamics = tokenizer(expected["frames"])

    def close(actual: Tensor, name: str) -> None:
        torch.testing.assert_close(actual.reshape(expected[name].shape), expected[name], atol=1e-4, rtol=0.0)

    close(output, "reconstruction")
    close(output[:, :CONTEXT], "tokenizer_recon_context")
    close(output[:, CONTEXT:], "tokenizer_recon_future")
    close(context.loss, "commit_loss")
    close(dynamics.loss, "dyn_commit_loss")


@needs_recording
@torch.no_grad()
def test_decoding_the_published_tokens(tokenizer: CompressiveTokenizer, expected: dict[str, Tensor]) -> None:
    """From codes alone, context once and each future frame by itself."""
    frames = expected["frames"]
    codes, features = tokenizer.encode_context(frames[:, :CONTEXT])
    dynamics = tokenizer.encode_dynamics(frames[:, CONTEXT:], features)
    context = tokenizer.context_features_for_decoder(codes)
    alone = [tokenizer.decode_dynamics(dynamics[:, k : k + 1], context) for k in range(dynamics.shape[1])]
    torch.testing.assert_close(torch.cat([context.frames, *alone], 1), expected["reconstruction"], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    ("sizes", "parameters", "tensors"),
    [
        ({}, 114_159_174, 420),
        (
            {
                "resolution": 256,
                "autoencoder": AutoencoderSizes((128, 256, 256, 512, 768)),
                "cross_attention": CrossAttentionSizes(max_resolution=32),
            },
            310_472_774,
            624,
        ),
    ],
)
def test_published_sizes(sizes: dict[str, Any], parameters: int, tensors: int) -> None:
    """Counted without allocating them."""
    with torch.device("meta"):
        made = CompressiveTokenizer(**sizes)
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert len(made.state_dict()) == tensors
    assert (made.context_tokens, made.dynamics_tokens) == (256, 16)


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = CompressiveTokenizer().state_dict()
    shapes = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.conv_out.weight": (64, 512, 3, 3),
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
        "cond_encoder.down_blocks.0.downsamplers.0.conv.weight": (128, 128, 3, 3),
        "cond_encoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
        "cond_encoder.cross_att_blocks.0.kv_pos_emb": (512, 256),
        "cond_encoder.cross_att_blocks.1.att.in_proj_weight": (1536, 512),
        "cond_decoder.cross_att_blocks.0.q_pos_emb": (256, 512),
        "cond_decoder.up_blocks.0.upsamplers.0.conv.weight": (512, 512, 3, 3),
        "decoder.up_blocks.2.resnets.2.conv2.weight": (128, 128, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
        "quant_linear.weight": (64, 1024),
        "post_quant_linear.weight": (1024, 64),
        "quantize.embedding.weight": (8192, 64),
        "dynamics_quantize.embedding.weight": (8192, 64),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert not any(name.startswith(("encoder.mid_block.attentions", "decoder.cross_att")) for name in state)
