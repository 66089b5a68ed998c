"""LLaMA decoder over video tokens: actions are added at the slots, and a reward is predicted for each frame.

Module names equal those of the published files, so that their weights load unchanged. B batch, L tokens, D width, F
future frames, A action width, P numbers of state, n dynamics tokens a frame. Source: iVideoGPT (arXiv 2405.15223).
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchrl.modules.functional import symlog

from worldmodel.ivideogpt.attention import rope_table
from worldmodel.ivideogpt.layout import TokenLayout
from worldmodel.ivideogpt.transformer.heads import Heads
from worldmodel.ivideogpt.transformer.llama import LanguageModel
from worldmodel.ivideogpt.transformer.proprioception import Proprioception
from worldmodel.ivideogpt.transformer.queries import FrameQueries, frame_mask
from worldmodel.ranges import Number, NumberOrZero, Positions, ShareBelowOne, Width

INITIAL_STD = 0.02


@dataclass(frozen=True)
class TransformerLoss:
    """Losses and metrics of one forward pass over segments.

    ``code_loss``, ``reward_loss`` and ``state_loss`` are 0-d, the latter two 0 without such a head; ``hits`` bool
    [B, F, n]: the most likely dynamics code is the true one; ``reward`` [B, F, 1] in symlog units, or None.
    """

    code_loss: Tensor
    reward_loss: Tensor
    state_loss: Tensor
    hits: Tensor
    reward: Tensor | None


def condition(x: Tensor, conditioning: Tensor, layout: TokenLayout, every_token: bool) -> Tensor:
    """Add the conditioning of future frames [B, F, D] to a segment's embeddings [B, L, D]; x is left as it is.

    Args:
        every_token: whether it is added to each token of a frame, or to the slot before them alone.
    """
    x = x.clone()
    conditioning = conditioning.to(x.dtype)
    if every_token:
        x[:, layout.prefix :] += conditioning.repeat_interleave(layout.stride, 1)
    else:
        x[:, layout.prefix :: layout.stride] += conditioning
    return x


class VideoTransformer(nn.Module):
    """Next-token prediction over segments, conditioned on actions.

    Args:
        layout: token counts and numbering, from the tokenizer.
        width: D. heads: attention heads; D / heads must be even. mlp_width: hidden width of the SwiGLU.
        layers: decoder layers.
        action_dim: A; None for a model without actions.
        reward_heads: linear heads that predict a reward: 1 as published, 0 for none.
        proprioception: P, the numbers of the robot's own state that are read and predicted; 0 for none.
        condition_tokens: whether the action (and the robot's state) is added to every token of its frame. Otherwise,
            as published, to the slot before them alone; few updates do not teach the tokens to attend to it.
        parallel: whether the tokens of a frame are predicted together, in one pass, from those of the frame before
            (see queries.py). Otherwise, as published, one after the other.
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
        width: Width,
        layers: Number,
        heads: Number,
        mlp_width: Width,
        reward_heads: Literal[0, 1] = 1,
        proprioception: NumberOrZero = 0,
        condition_tokens: bool = False,
        parallel: bool = False,
        attention_dropout: ShareBelowOne = 0.0,
        max_positions: Positions = 1024,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of 2 * heads ({2 * heads})")
        if reward_heads not in (0, 1) or proprioception < 0:
            raise ValueError(
                f"reward_heads ({reward_heads}) must be 0 or 1, and proprioception ({proprioception}) 0 or more"
            )
        self.layout, self.condition_tokens = layout, condition_tokens
        self.heads, self.max_positions, self.attention_dropout = heads, max_positions, attention_dropout
        self.llm = LanguageModel(layout.vocabulary, width, layers, heads, mlp_width, attention_dropout)
        self.action_linear = None if action_dim is None else nn.Linear(action_dim, width)
        self.reward_linear = nn.Linear(width, reward_heads) if reward_heads else None
        self.proprioception = Proprioception(proprioception, width) if proprioception else None
        self.queries = FrameQueries(layout.dynamics_tokens, width, INITIAL_STD) if parallel else None
        cos, sin = rope_table(max_positions, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.llm.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
        if self.action_linear is not None:  # An untrained action has no effect.
            nn.init.zeros_(self.action_linear.weight)
            nn.init.zeros_(self.action_linear.bias)
        if self.reward_linear is not None:
            nn.init.normal_(self.reward_linear.weight, std=INITIAL_STD)
            nn.init.zeros_(self.reward_linear.bias)

    @property
    def width(self) -> int:
        """D."""
        return self.llm.lm_head.in_features

    @property
    def frame_heads(self) -> Heads:
        """Conditioning inputs and output heads of frames."""
        return Heads(self.action_linear, self.reward_linear, self.proprioception)

    def embed(self, tokens: Tensor, conditioning: Tensor | None, layout: TokenLayout) -> Tensor:
        """Embeddings [B, L, D] of tokens [B, L] and of the conditioning [B, F, D] (see Heads.condition)."""
        x = self.llm.model.embed_tokens(tokens)
        if self.queries is not None:
            x = self.queries(x, layout)
        if conditioning is None:
            return x
        futures = layout.futures(tokens.shape[1])
        if (given := conditioning.shape[1]) != futures:
            raise ValueError(f"{futures} future frames need as many actions, one leading to each; got {given}")
        return condition(x, conditioning, layout, self.condition_tokens)

    def hidden(
        self,
        tokens: Tensor,
        actions: Tensor | None,
        states: Tensor | None = None,
        layout: TokenLayout | None = None,
        first: int = 0,
    ) -> Tensor:
        """Final hidden states [B, L - first, D] of the tokens from number `first` on.

        Args:
            tokens: int64 [B, L].
            actions: [B, F, A] that lead to the future frames.
            states: [B, F, P] before them.
            layout: layout of the tokens; None: the model's.
            first: index of the first token whose hidden state is computed in the last layer.
        """
        length = tokens.shape[1]
        if length > self.max_positions:
            raise ValueError(f"a segment of {length} tokens exceeds max_positions={self.max_positions}")
        layout = layout or self.layout
        x = self.embed(tokens, self.frame_heads.condition(actions, states), layout)
        mask = None if self.queries is None else frame_mask(layout, length, x)
        *layers, last = self.llm.model.layers
        for layer in layers:
            x = layer(x, self.cos[:length], self.sin[:length], mask)
        return self.llm.model.norm(last(x, self.cos[:length], self.sin[:length], mask, first))

    def forward(self, tokens: Tensor, actions: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, L, vocabulary] at every position, and symlog rewards [B, F, 1] (None without a head).

        The logits at a position predict the next token. In parallel decoding the logits at a future frame's tokens
        predict the token at the same position, and all others have no meaning. The layout is read from the separators
        in the tokens, so the context can have any length.

        Args:
            tokens: int64 [B, L].
            actions: [B, F, A] that lead to the F future frames; or those of the whole segment [B, T, A] or
                [B, T - 1, A], where action k leads to frame k + 1.
        """
        layout = self.layout.read(tokens)
        futures, context = layout.futures(tokens.shape[1]), layout.context_length
        if self.action_linear is None:
            actions = None
        elif actions is not None and actions.shape[1] in (futures + context, futures + context - 1):
            actions = actions[:, context - 1 :][:, :futures]
        hidden = self.hidden(tokens, actions, layout=layout)
        return self.llm.lm_head(hidden), self.rewards(hidden[:, layout.prefix :], layout)

    def frame_states(self, hidden: Tensor, layout: TokenLayout | None = None) -> Tensor:
        """Summary hidden state of each future frame [B, F, D], from the hidden states [B, F (n + 1), D] of its tokens.

        It is the state of the last dynamics token. In parallel decoding it is the state of the slot, which attends to
        the action and to all earlier frames, but not to the tokens of its own frame.
        """
        layout = layout or self.layout
        return hidden[:, layout.dynamics_tokens if self.queries is None else 0 :: layout.stride]

    def rewards(self, hidden: Tensor, layout: TokenLayout | None = None) -> Tensor | None:
        """Symlog rewards [B, F, 1] of the future frames, arguments as of `frame_states`; None without a head."""
        return self.frame_heads.rewards(self.frame_states(hidden, layout))

    def losses(
        self,
        tokens: Tensor,
        actions: Tensor | None,
        rewards: Tensor | None,
        full_vocabulary: bool = False,
        states: tuple[Tensor, Tensor] | None = None,
        token_noise: float = 0.0,
    ) -> TransformerLoss:
        """Cross-entropy of the future frames' tokens, and mean squared errors of symlog rewards and of states.

        The supervised tokens are all dynamics tokens and, as published, every slot but the first (in parallel decoding
        no slot). Logits are computed for these alone, over dynamics codes and separators. With ``full_vocabulary`` the
        softmax also runs over the context codes, as published.

        Args:
            tokens: int64 [B, L]. actions: [B, F, A] leading to the future frames.
            rewards: [B, F, 1] earned on arriving at the future frames, in real units; None for no reward loss.
            states: [B, F, P] before and at the future frames, of a model with proprioception.
            token_noise: share of the dynamics tokens that are replaced by random ones in the input, not in the targets.
        """
        layout = self.layout
        before, after = states if states is not None else (None, None)
        if self.proprioception is not None and self.training and before is not None and after is not None:
            self.proprioception.watch(before, after)
        read = layout.corrupt(tokens, token_noise) if token_noise else tokens
        hidden = self.hidden(read, actions, before, first=layout.prefix)
        first_row = 0 if full_vocabulary else layout.context_codes
        supervised, targets = self._supervised(hidden, tokens[:, layout.prefix :])
        logits, targets = F.linear(supervised, self.llm.lm_head.weight[first_row:]).float(), targets - first_row
        code_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        codes = slice(layout.context_codes - first_row, layout.separator - first_row)
        hits = logits[..., codes].argmax(-1) + codes.start == targets
        if self.queries is None:
            hits = F.pad(hits, (0, 1))  # for the slot after the last frame, which does not exist
        hits = hits.unflatten(1, (layout.futures(tokens.shape[1]), -1))[..., : layout.dynamics_tokens]
        predicted, reward_loss, state_loss = self.rewards(hidden), code_loss.new_zeros(()), code_loss.new_zeros(())
        if predicted is not None and rewards is not None:
            reward_loss = F.mse_loss(predicted, symlog(rewards.float()))
        if self.proprioception is not None and before is not None and after is not None:
            state_loss = self.proprioception.loss(self.frame_states(hidden), before, after)
        return TransformerLoss(code_loss, reward_loss, state_loss, hits, predicted)

    def _supervised(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [B, M, D] of future frames that predict a token, and the target tokens [B, M]."""
        if self.queries is None:
            return hidden[:, :-1], tokens[:, 1:]
        supervised, targets = (
            x.unflatten(1, (-1, self.layout.stride))[:, :, 1:].flatten(1, 2) for x in (hidden, tokens)
        )
        return supervised, targets
