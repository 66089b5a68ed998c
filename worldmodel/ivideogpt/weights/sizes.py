"""The sizes of a published network, read off its tensors; config.json is asked for what no tensor tells."""

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from worldmodel.ivideogpt.attention import ROPE_THETA
from worldmodel.ivideogpt.tokenizer.quantizer import VectorQuantizer
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.transformer.llama import NORM_EPS
from worldmodel.ivideogpt.weights.files import Config, Tensors

HEAD_WIDTH = 64  # of every published transformer
# names in the published config.json -> arguments of CompressiveTokenizer
RENAMED = {
    "num_vq_embeddings": "context_codes",
    "num_dyn_embeddings": "dynamics_codes",
    "norm_num_groups": "norm_groups",
    "vq_embed_dim": "code_dim",
    "patch_size": "patch",
}
DOWN_BLOCK = r"(?:cond_)?encoder\.down_blocks"
CROSS = r"cond_(?:en|de)coder\.cross_att_blocks\.\d+"


def tokenizer_arguments(tensors: Tensors, config: Config) -> dict[str, Any]:
    """What to call CompressiveTokenizer with; ValueError where neither the tensors nor `config` tell a size."""
    known = inspect.signature(CompressiveTokenizer.__init__).parameters
    arguments = {RENAMED.get(name, name): value for name, value in config.items()}
    arguments = {name: value for name, value in arguments.items() if name in known}
    quantizer = arguments.get("quantizer", {})
    arguments["quantizer"] = partial(VectorQuantizer, **quantizer) if quantizer else VectorQuantizer
    read = {name: value for name, value in _tokenizer_sizes(tensors).items() if value is not None}
    arguments |= read
    lacking = [name for name in ("block_out_channels", "resolution", "context_length") if name not in arguments]
    if lacking:
        raise ValueError(f"neither the tensors nor config.json tell {', '.join(lacking)} of this tokenizer")
    return arguments


def _tokenizer_sizes(tensors: Tensors) -> dict[str, Any]:
    levels = _count(tensors, rf"{DOWN_BLOCK}\.(\d+)\..*")
    widths = [_size(tensors, rf"{DOWN_BLOCK}\.{level}\.resnets\.\d+\.conv[12]\.weight", 0) for level in range(levels)]
    latent = _size(tensors, r"(?:cond_)?encoder\.conv_out\.(?:weight|bias)", 0)
    patches = _size(tensors, r"(?:quant_linear\.weight|post_quant_linear\.bias)", _longest)
    pixels = _size(tensors, r"(?:cond_)?encoder\.conv_in\.weight", 1)
    stem = None if pixels is None else math.isqrt(pixels // 3)
    queries = {name: len(value) for name, value in tensors.items() if re.fullmatch(rf"{CROSS}\.q_pos_emb", name)}
    frames = [
        len(tensors[name.replace("q_pos_emb", "kv_pos_emb")]) / count
        for name, count in queries.items()
        if name.replace("q_pos_emb", "kv_pos_emb") in tensors
    ]
    sides = [math.isqrt(count) for count in queries.values()]  # the smallest is that of the latents
    # the decoder's middle block attends whatever the sides; the encoder tells whether they are small enough
    encoder_attends = any(name.startswith("cond_encoder.") for name in queries)
    attention = r"\.mid_block\.attentions\..*"
    return {
        "block_out_channels": None if None in widths or not widths else widths,
        "layers_per_block": _count(tensors, rf"{DOWN_BLOCK}\.\d+\.resnets\.(\d+)\..*") or None,
        "latent_channels": latent,
        "code_dim": _size(tensors, r"(?:dynamics_)?quantize\.embedding\.weight", 1),
        "context_codes": _size(tensors, r"quantize\.embedding\.weight", 0),
        "dynamics_codes": _size(tensors, r"dynamics_quantize\.embedding\.weight", 0),
        "patch": None if None in (latent, patches) else math.isqrt(int(patches or 0) // int(latent or 1)),
        "stem_patch": stem,
        "resolution": min(sides) * (stem or 1) << (levels - 1) if sides and levels else None,
        "context_length": int(Counter(frames).most_common(1)[0][0]) if frames else None,
        "max_att_resolution": max(sides, default=0) if encoder_attends else min(sides, default=1) - 1,
        "context_mid_attention": any(re.fullmatch(rf"(?:en|de)coder{attention}", name) for name in tensors),
        "dynamics_mid_attention": any(re.fullmatch(rf"cond_(?:en|de)coder{attention}", name) for name in tensors),
    }


def transformer_arguments(tensors: Tensors, config: Config, heads: int | None) -> dict[str, Any]:
    """What to call VideoTransformer with, `vocabulary` standing for its layout; tensors under our names.

    Raises:
        ValueError: the tensors do not tell a size, or the configuration asks for another kind of network.
    """
    rope = config.get("rope_parameters") or config
    odd = {"rms_norm_eps": (config, NORM_EPS), "rope_theta": (rope, ROPE_THETA)}
    for name, (settings, ours) in odd.items():
        if not math.isclose(settings.get(name) or ours, ours):
            raise ValueError(f"config.json has {name} {settings[name]}; iVideoGPT's transformers have {ours:g}")
    width = _size(tensors, r"llm\.model\.(?:.*norm|layers\.\d+\..*layernorm)\.weight", 0)
    sizes = {
        "vocabulary": _size(tensors, r"llm\.(?:model\.embed_tokens|lm_head)\.weight", 0),
        "width": width,
        "layers": _count(tensors, r"llm\.model\.layers\.(\d+)\..*") or None,
        "mlp_width": _size(tensors, r"llm\.model\.layers\.\d+\.mlp\.(?:gate|up)_proj\.weight", 0),
    }
    lacking = [name for name, value in sizes.items() if value is None]
    if lacking or width is None:
        raise ValueError(f"no iVideoGPT transformer: its tensors tell no {', '.join(lacking)}")
    heads = heads or config.get("num_attention_heads") or max(width // HEAD_WIDTH, 1)
    return sizes | {
        "heads": heads,
        "max_positions": config.get("max_position_embeddings", 1024),
        "attention_dropout": config.get("attention_dropout", 0.1),
        "reward_heads": _size(tensors, r"reward_linear\.(?:weight|bias)", 0) or 0,
        "proprioception": _size(tensors, r"proprioception\.read\.weight", 1) or 0,
        "action_dim": _size(tensors, r"action_linear\.weight", 1),
    }


def _longest(shape: tuple[int, ...]) -> int:
    return max(shape)


def _size(tensors: Tensors, pattern: str, axis: int | Callable[[tuple[int, ...]], int]) -> int | None:
    """The size that most tensors of matching names have along `axis`, so that one misshapen tensor decides nothing."""
    shapes = [tuple(value.shape) for name, value in tensors.items() if re.fullmatch(pattern, name)]
    sizes = [axis(shape) if callable(axis) else shape[axis] for shape in shapes if callable(axis) or len(shape) > axis]
    return Counter(sizes).most_common(1)[0][0] if sizes else None


def _count(tensors: Tensors, pattern: str) -> int:
    """1 + the largest number that the pattern's group takes in any name; 0 where none matches."""
    numbers = (re.fullmatch(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)
