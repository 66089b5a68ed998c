"""Loads the published weights of iVideoGPT; loads and saves our own in the same layout. Sizes come from the tensors.

Layout: tokenizer/{config.json, diffusion_pytorch_model.safetensors}, transformer/{config.json, model.safetensors}.
Dimensions: B batch, T frames, C context frames, L tokens, A action width. Source: thuml/iVideoGPT and its weights.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from worldmodel.ivideogpt.attention import ROPE_THETA, rope_table
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.tokenizer.tokenizer import CompressiveTokenizer
from worldmodel.ivideogpt.transformer.llama import NORM_EPS
from worldmodel.ivideogpt.transformer.transformer import INITIAL_STD, VideoTransformer
from worldmodel.ivideogpt.weights.files import Config, Tensors, assign, find, read, read_config, write
from worldmodel.ivideogpt.weights.sizes import flat, tokenizer_arguments, tokenizer_config, transformer_arguments

TOKENIZER_FILE, TRANSFORMER_FILE = "diffusion_pytorch_model", "model"
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# The head of a loss in the published training, and a buffer of old versions of transformers.
NOT_NEEDED = re.compile(r"action_recon_linear\..*|.*rotary_emb\.inv_freq")

_log = logging.getLogger(__name__)


def load_tokenizer(source: str | Path, context_length: int | None = None) -> CompressiveTokenizer:
    """Load a tokenizer: `tokenize(frames) -> tokens` and `detokenize(tokens) -> frames`.

    Args:
        source: A folder, a file or a Hugging Face id, see weights.files.find.
        context_length: C, at most the C of the file. The cross-attention then keeps the position embeddings of the
            newest frames. None: as in the file.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: A file cannot be read, or tensors do not fit; names every missing, unexpected or misshapen tensor.
    """
    path = find(source, "tokenizer")
    tensors, config = read(path, TOKENIZER_FILE)
    tensors = {_current_name(name): value for name, value in tensors.items()}
    try:
        arguments = tokenizer_arguments(tensors, config)
        if context_length is not None:
            tensors = _shorten(tensors, arguments["context_length"], context_length)
            arguments["context_length"] = context_length
        with torch.device("meta"):
            tokenizer = CompressiveTokenizer(**arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    assign(tokenizer, tensors, path)
    return tokenizer.eval()


def load_transformer(
    source: str | Path,
    action_dim: int | None = None,
    *,
    layout: TokenLayout | None = None,
    heads: int | None = None,
) -> VideoTransformer:
    """Load a transformer: called with (tokens, actions) it returns logits, and rewards or None.

    Args:
        source: A folder, a file or a Hugging Face id, see weights.files.find. Files may be action-free or
            action-conditioned (`llm.` before the names of the decoder), with or without a reward head.
        action_dim: A. A file without an action layer gets one of zeros, so that initially actions have no effect.
            None: as in the file.
        layout: Layout of its tokens. None: from the tokenizer in the same folder, else the published one.
        heads: Attention heads. None: as in config.json, else one for each 64 of the width, as published.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: A file cannot be read, or tensors do not fit; names every missing, unexpected or misshapen tensor.
    """
    path, tensors, config = _read_transformer(source)
    return _build_transformer(path, tensors, config, action_dim, layout, heads).eval()


def load_parts(
    source: str | Path,
    action_dim: int | None,
    goal: bool = False,
    asked: Mapping[str, Any] | None = None,
) -> tuple[CompressiveTokenizer, VideoTransformer]:
    """Load a tokenizer, and a transformer with an action layer and a reward head, to start an agent from.

    Layers that the files do not have are new: a reward head is random, an action layer (or one of another width) is
    zero.

    Args:
        source: A folder or a Hugging Face id, see weights.files.find.
        action_dim: A. None: no action layer.
        goal: Whether the weights will be used with a goal frame.
        asked: Configured settings by name, such as `tokenizer.resolution`. A warning names those that the weights
            override. `transformer.reward_heads` is 0 where no new reward head is wanted.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: As load_tokenizer and load_transformer; or the weights were saved with a goal and are used without
            one, or the reverse.
    """
    trained_goal, asked = trained_with(source, "goal"), asked or {}
    if trained_goal not in (None, goal):
        raise ValueError(
            f"{source}: set conditioning.goal={str(trained_goal).lower()}, with which these weights were trained"
        )
    tokenizer = load_tokenizer(source)
    path, tensors, config = _read_transformer(source)
    layer = tensors.get("action_linear.weight")
    if layer is not None and layer.shape[-1] != action_dim:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("action_linear.")}
    norm = tensors.get("llm.model.norm.weight")
    if norm is not None and "reward_linear.weight" not in tensors and asked.get("transformer.reward_heads", 1):
        tensors |= {"reward_linear.weight": torch.randn(1, len(norm)) * INITIAL_STD}
        tensors |= {"reward_linear.bias": torch.zeros(1)}
    transformer = _build_transformer(path, tensors, config, action_dim, tokenizer.layout)
    found = {f"transformer.{name}": value for name, value in transformer_arguments(tensors, config, None).items()}
    found |= {f"tokenizer.{name}": value for name, value in flat(tokenizer.settings).items()}
    _warn_of_overruled(asked, found)
    return tokenizer.train(), transformer.train()


def trained_with(source: str | Path, frame: Literal["goal", "initial"]) -> bool | None:
    """Whether weights were saved by a model conditioned on this frame. None: not known, as of the published weights."""
    path = find(source, "transformer")
    return read_config((path if path.is_dir() else path.parent) / "config.json").get(f"{frame}_conditioned")


def _warn_of_overruled(asked: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

    # A code_dim of None means latent_channels, so it is no difference.
    names = [name for name in asked if name in found and name != "tokenizer.codebooks.code_dim"]
    overruled = [name for name in names if plain(asked[name]) != plain(found[name])]
    if overruled:
        listed = ", ".join(f"{name} {plain(found[name])} (not {plain(asked[name])})" for name in overruled[:4])
        more = f" and {len(overruled) - 4} more" if len(overruled) > 4 else ""
        _log.warning("the weights overrule the settings: %s%s", listed, more)


def save_parts(
    folder: str | Path,
    tokenizer: CompressiveTokenizer,
    transformer: VideoTransformer,
    goal: bool = False,
    initial: bool = False,
) -> None:
    """Write the parts in the published layout. Each file is written whole or not at all.

    Args:
        folder: Folder to write to.
        tokenizer: The tokenizer.
        transformer: The transformer.
        goal: Whether they were trained with a goal frame.
        initial: Whether their context was the initial frame of the episode.
    """
    write(Path(folder) / "tokenizer", TOKENIZER_FILE, tokenizer.state_dict(), tokenizer_config(tokenizer))
    tensors = transformer.state_dict()
    if all(name.startswith("llm.") for name in tensors):  # as in action-free files
        tensors = {name.removeprefix("llm."): value for name, value in tensors.items()}
    write(Path(folder) / "transformer", TRANSFORMER_FILE, tensors, _transformer_config(transformer, goal, initial))


def _transformer_config(transformer: VideoTransformer, goal: bool, initial: bool) -> Config:
    return {
        "goal_conditioned": goal,
        "initial_conditioned": initial,
        "model_type": "llama",
        "hidden_size": transformer.width,
        "num_hidden_layers": len(transformer.llm.model.layers),
        "num_attention_heads": transformer.heads,
        "condition_tokens": transformer.condition_tokens,
        "vocab_size": transformer.layout.vocabulary,
        "max_position_embeddings": transformer.max_positions,
        "attention_dropout": transformer.attention_dropout,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
    }


def _current_name(name: str) -> str:
    """The current name of a tensor of a tokenizer. Old versions of diffusers had other names for attention layers."""
    parts = re.match(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\..*)", name)
    return f"{parts[1]}{OLD_ATTENTION[parts[2]]}{parts[3]}" if parts else name


def _shorten(tensors: Tensors, frames: int, wanted: int) -> Tensors:
    """Keep the position embeddings of the newest `wanted` of `frames` context frames."""
    if not 1 <= wanted <= frames:
        raise ValueError(f"context_length {wanted} is not possible: these weights know 1 to {frames} context frames")
    return {
        name: value[-len(value) * wanted // frames :] if name.endswith("kv_pos_emb") else value
        for name, value in tensors.items()
    }


def _read_transformer(source: str | Path) -> tuple[Path, Tensors, Config]:
    """The path of a transformer, its tensors under our names, and its configuration."""
    path = find(source, "transformer")
    tensors, config = read(path, TRANSFORMER_FILE)
    if not config:  # a single file, in the same folder as the model that it was trained from
        config = read_config(path.parent / "transformer" / "config.json")
    tensors = {name: value for name, value in tensors.items() if not NOT_NEEDED.fullmatch(name)}
    if not any(name.startswith("llm.") for name in tensors):
        tensors = {f"llm.{name}" if name.startswith(("model.", "lm_head.")) else name: v for name, v in tensors.items()}
    return path, tensors, config


def _build_transformer(
    path: Path,
    tensors: Tensors,
    config: Config,
    action_dim: int | None,
    layout: TokenLayout | None,
    heads: int | None = None,
) -> VideoTransformer:
    try:
        arguments = transformer_arguments(tensors, config, heads)
        vocabulary, width = arguments.pop("vocabulary"), arguments.pop("action_dim")
        layout = layout or _layout_beside(path) or _published_layout(vocabulary)
        if layout.vocabulary != vocabulary:
            raise ValueError(f"it knows {vocabulary} tokens, but the tokenizer beside it makes {layout.vocabulary}")
        with torch.device("meta"):
            transformer = VideoTransformer(layout, width if action_dim is None else action_dim, **arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if action_dim is not None and width is None:
        for name in ("action_linear.weight", "action_linear.bias"):
            tensors = tensors | {name: torch.zeros(transformer.get_parameter(name).shape)}
    assign(transformer, tensors, path)
    transformer.cos, transformer.sin = rope_table(transformer.max_positions, transformer.width // transformer.heads)
    return transformer


def _layout_beside(path: Path) -> TokenLayout | None:
    """Layout of the tokenizer in the same folder as a transformer's folder or file. None: there is no tokenizer."""
    folder = path.parent / "tokenizer"
    if not folder.is_dir():
        return None
    tensors, config = read(folder, TOKENIZER_FILE)
    with torch.device("meta"):
        return CompressiveTokenizer(**tokenizer_arguments(tensors, config)).layout


def _published_layout(vocabulary: int) -> TokenLayout:
    """Two codebooks of the same size, 256 and 16 tokens, two context frames."""
    dynamics = (vocabulary - 2) // 2
    return TokenLayout(vocabulary - 2 - dynamics, dynamics, 256, 16, 2)
