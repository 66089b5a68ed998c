"""Settings of a network by name: written to config.json, and inferred from config.json and the tensors.

A setting of a group has the name GROUP.SETTING, as on the command line: `autoencoder.norm_groups`.
"""

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from worldmodel.ivideogpt.attention import ROPE_THETA
from worldmodel.ivideogpt.tokenizer.settings import (
    AutoencoderSizes,
    Codebooks,
    CrossAttentionSizes,
    MovingAverage,
    StaticScene,
    TokenizerLoss,
)
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.transformer.llama import NORM_EPS
from worldmodel.ivideogpt.weights.files import Config, Tensors

HEAD_WIDTH = 64  # of every published transformer
GROUPS = {
    "autoencoder": AutoencoderSizes,
    "cross_attention": CrossAttentionSizes,
    "codebooks": Codebooks,
    "static_scene": StaticScene,
    "loss": TokenizerLoss,
}
# Names in the published config.json, and the settings of CompressiveTokenizer.
PUBLISHED_NAMES = {
    "block_out_channels": "autoencoder.block_out_channels",
    "layers_per_block": "autoencoder.layers_per_block",
    "latent_channels": "autoencoder.latent_channels",
    "norm_num_groups": "autoencoder.norm_groups",
    "max_att_resolution": "cross_attention.max_resolution",
    "num_vq_embeddings": "codebooks.context_codes",
    "num_dyn_embeddings": "codebooks.dynamics_codes",
    "vq_embed_dim": "codebooks.code_dim",
    "patch_size": "patch",
}
DOWN_BLOCK = r"(?:cond_)?encoder\.down_blocks"
CROSS = r"cond_(?:en|de)coder\.cross_att_blocks\.\d+"


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with each group replaced by its settings, by name."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if name in GROUPS and is_dataclass(value):
            named |= {f"{name}.{field.name}": getattr(value, field.name) for field in fields(value)}
        else:
            named[name] = value
    return named


def grouped(named: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `flat`. Missing groups and settings have their defaults."""
    arguments = {name: value for name, value in named.items() if "." not in name}
    for group, make in GROUPS.items():
        prefix = f"{group}."
        own = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
        if isinstance(own.get("moving_average"), Mapping):
            own["moving_average"] = MovingAverage(**own["moving_average"])
        arguments[group] = make(**own)
    return arguments


def by_name(part: str, factory: Any) -> dict[str, Any]:
    """Settings that a partial passes on, each prefixed with the name of the part."""
    return {f"{part}.{name}": value for name, value in flat(getattr(factory, "keywords", {})).items()}


def tokenizer_config(tokenizer: CompressiveTokenizer) -> Config:
    """Contents of config.json of a tokenizer: published names if they exist, else ours."""
    published = {ours: name for name, ours in PUBLISHED_NAMES.items()}
    return {published.get(name, name): value for name, value in flat(tokenizer.settings).items()}


def tokenizer_arguments(tensors: Tensors, config: Config) -> dict[str, Any]:
    """Arguments of CompressiveTokenizer. Sizes of the tensors take precedence over the configuration.

    Raises:
        ValueError: Neither the tensors nor the configuration determine a size.
    """
    defaults = {name: known.default for name, known in inspect.signature(CompressiveTokenizer).parameters.items()}
    known = flat(defaults)
    named = {PUBLISHED_NAMES.get(name, name): value for name, value in config.items()}
    named = {name: value for name, value in named.items() if name in known}
    named |= {name: value for name, value in _tokenizer_sizes(tensors).items() if value is not None}
    lacking = [name for name in ("autoencoder.block_out_channels", "resolution", "context_length") if name not in named]
    if lacking:
        raise ValueError(f"neither the tensors nor config.json tell {', '.join(lacking)} of this tokenizer")
    return grouped(named)


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
    sides = [math.isqrt(count) for count in queries.values()]  # The smallest is the side of the latents.
    # The middle block of the decoder attends at any side, so only the encoder shows which sides are small enough.
    encoder_attends = any(name.startswith("cond_encoder.") for name in queries)
    return {
        "autoencoder.block_out_channels": None if None in widths or not widths else widths,
        "autoencoder.layers_per_block": _count(tensors, rf"{DOWN_BLOCK}\.\d+\.resnets\.(\d+)\..*") or None,
        "autoencoder.latent_channels": latent,
        "autoencoder.stem_patch": stem,
        "codebooks.code_dim": _size(tensors, r"(?:dynamics_)?quantize\.embedding\.weight", 1),
        "codebooks.context_codes": _size(tensors, r"quantize\.embedding\.weight", 0),
        "codebooks.dynamics_codes": _size(tensors, r"dynamics_quantize\.embedding\.weight", 0),
        "cross_attention.max_resolution": max(sides, default=0) if encoder_attends else min(sides, default=1) - 1,
        "patch": None if None in (latent, patches) else math.isqrt(int(patches or 0) // int(latent or 1)),
        "resolution": min(sides) * (stem or 1) << (levels - 1) if sides and levels else None,
        "context_length": int(Counter(frames).most_common(1)[0][0]) if frames else None,
    }


def transformer_arguments(tensors: Tensors, config: Config, heads: int | None) -> dict[str, Any]:
    """Arguments of VideoTransformer, with `vocabulary` in place of its layout.

    Args:
        tensors: The weights, under our names.
        config: The config.json of the transformer.
        heads: Attention heads. None: as in `config`, else one for each 64 of the width, as published.

    Raises:
        ValueError: The tensors do not determine a size, or the configuration describes another kind of network.
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
        "condition_tokens": bool(config.get("condition_tokens", False)),
        "parallel": "queries.first" in tensors,
        "action_dim": _size(tensors, r"action_linear\.weight", 1),
    }


def _longest(shape: tuple[int, ...]) -> int:
    return max(shape)


def _size(tensors: Tensors, pattern: str, axis: int | Callable[[tuple[int, ...]], int]) -> int | None:
    """Most frequent size along `axis` of tensors with a matching name, so that one misshapen tensor has no effect."""
    shapes = [tuple(value.shape) for name, value in tensors.items() if re.fullmatch(pattern, name)]
    sizes = [axis(shape) if callable(axis) else shape[axis] for shape in shapes if callable(axis) or len(shape) > axis]
    return Counter(sizes).most_common(1)[0][0] if sizes else None


def _count(tensors: Tensors, pattern: str) -> int:
    """1 + the largest number in the group of the pattern, over all names; 0 if no name matches."""
    numbers = (re.fullmatch(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)
