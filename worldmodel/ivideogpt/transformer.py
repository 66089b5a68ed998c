"""The LLaMA decoder over video tokens, with actions added to the slots and a reward read off each frame.

Module names are those of the published files, so that their weights load as they are. B batch, L tokens,
D width, F future frames, A action width, n dynamics tokens a frame. Source: iVideoGPT (arXiv 2405.15223) over
LLaMA (arXiv 2302.13971).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.ivideogpt.attention import causal_attention, rope_table, rotate
from worldmodel.ivideogpt.layout import TokenLayout

NORM_EPS = 1e-6
INITIAL_STD = 0.02


def symlog(x: Tensor) -> Tensor:
    """sign(x) · ln(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


class RMSNorm(nn.Module):
    """x / rms(x) · weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)


class SelfAttention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, heads, L, D / heads]
        dropout = self.dropout if self.training else 0.0
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = causal_attention(q, k, v, dropout)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width)
        self.self_attn = SelfAttention(width, heads, dropout)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = GatedMLP(width, mlp_width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, mlp_width, dropout) for _ in range(layers))
        self.norm = RMSNorm(width)


class LanguageModel(nn.Module):
    """A decoder and its untied head: what the action-free files hold."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.model = Decoder(vocabulary, width, layers, heads, mlp_width, dropout)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)


@dataclass(frozen=True)
class TransformerLoss:
    """What one forward pass over segments yields for training.

    ``code_loss`` and ``reward_loss`` (0 without a reward head) are 0-d; ``hits`` bool [B, F, n]: the most
    likely dynamics code is the true one; ``reward`` [B, F, 1] in symlog units, or None.
    """

    code_loss: Tensor
    reward_loss: Tensor
    hits: Tensor
    reward: Tensor | None


class VideoTransformer(nn.Module):
    """Next-token prediction over segments, conditioned on actions.

    Args:
        layout: token counts and numbering, from the tokenizer.
        width: D. heads: attention heads; D / heads must be even. mlp_width: hidden width of the SwiGLU.
        layers: decoder layers.
        action_dim: A; None for a model without actions.
        reward_head: whether a reward is predicted.
        attention_dropout: dropout of the attention weights while training.
        max_positions: the longest segment in tokens.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        layout: TokenLayout,
        action_dim: int | None,
        *,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        reward_head: bool = True,
        attention_dropout: float = 0.0,
        max_positions: int = 1024,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of 2 * heads ({2 * heads})")
        self.layout = layout
        self.heads, self.max_positions, self.attention_dropout = heads, max_positions, attention_dropout
        self.llm = LanguageModel(layout.vocabulary, width, layers, heads, mlp_width, attention_dropout)
        self.action_linear = None if action_dim is None else nn.Linear(action_dim, width)
        self.reward_linear = nn.Linear(width, 1) if reward_head else None
        cos, sin = rope_table(max_positions, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.llm.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
        if self.action_linear is not None:  # at first the action changes nothing, as in a model without it
            nn.init.zeros_(self.action_linear.weight)
            nn.init.zeros_(self.action_linear.bias)
        if self.reward_linear is not None:
            nn.init.normal_(self.reward_linear.weight, std=INITIAL_STD)
            nn.init.zeros_(self.reward_linear.bias)

    def embed(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """Tokens [B, L] and the actions [B, F, A] that lead to the future frames, to embeddings [B, L, D]."""
        x = self.llm.model.embed_tokens(tokens)
        if self.action_linear is None:
            return x
        futures = self.layout.futures(tokens.shape[1])
        if actions is None or actions.shape[1] != futures:
            got = "none" if actions is None else actions.shape[1]
            raise ValueError(f"{futures} future frames need as many actions, one leading to each; got {got}")
        slots = x[:, self.layout.prefix :: self.layout.stride] + self.action_linear(actions)
        x = x.clone()
        x[:, self.layout.prefix :: self.layout.stride] = slots.to(x.dtype)
        return x

    def hidden(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """Final hidden states [B, L, D]; arguments as for ``embed``."""
        length = tokens.shape[1]
        if length > self.max_positions:
            raise ValueError(f"a segment of {length} tokens exceeds max_positions={self.max_positions}")
        x = self.embed(tokens, actions)
        for layer in self.llm.model.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return self.llm.model.norm(x)

    def forward(self, tokens: Tensor, actions: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, L, vocabulary] at every position, and symlog rewards [B, F, 1] (None without a head)."""
        hidden = self.hidden(tokens, actions)
        return self.llm.lm_head(hidden), self.rewards(hidden)

    def rewards(self, hidden: Tensor) -> Tensor | None:
        """Symlog rewards [B, F, 1], read at each future frame's last dynamics token; None without a head."""
        if self.reward_linear is None:
            return None
        last = self.layout.prefix + self.layout.dynamics_tokens
        return self.reward_linear(hidden[:, last :: self.layout.stride]).float()

    def losses(
        self, tokens: Tensor, actions: Tensor | None, rewards: Tensor | None, full_vocabulary: bool = False
    ) -> TransformerLoss:
        """Cross-entropy of the future frames' tokens and mean squared error of the symlog rewards.

        Supervised are all dynamics tokens and, as published, every slot but the first. Logits exist at those
        positions alone, and over the rows of dynamics codes and separators alone, unless ``full_vocabulary``
        asks for the published loss, whose softmax runs over the context codes too.

        Args:
            tokens: int64 [B, L]. actions: [B, F, A] leading to the future frames.
            rewards: [B, F, 1] earned on arriving at the future frames, in real units; None for no such loss.
        """
        layout = self.layout
        hidden = self.hidden(tokens, actions)
        first_row = 0 if full_vocabulary else layout.context_codes
        logits = F.linear(hidden[:, layout.prefix : -1], self.llm.lm_head.weight[first_row:]).float()
        targets = tokens[:, layout.prefix + 1 :] - first_row
        code_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        codes = slice(layout.context_codes - first_row, layout.separator - first_row)
        hits = logits[..., codes].argmax(-1) + codes.start == targets
        hits = F.pad(hits, (0, 1))  # a place for the slot after the last frame, which does not exist
        hits = hits.unflatten(1, (-1, layout.stride))[..., :-1]
        predicted = self.rewards(hidden)
        reward_loss = code_loss.new_zeros(())
        if predicted is not None and rewards is not None:
            reward_loss = F.mse_loss(predicted, symlog(rewards.float()))
        return TransformerLoss(code_loss, reward_loss, hits, predicted)
