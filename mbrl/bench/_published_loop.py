"""iVideoGPT's published loop of imagination with the same weights: the baseline of `imagination.py`.

Source: thuml/iVideoGPT, mbrl/video_predictor.py, with transformers 4.38.2. The context frames are tokenized and decoded
once. For every frame:

- the transformer runs over the whole prefix again, with logits at all positions, and fills a KV cache that lasts for
  this frame and grows by concatenation;
- each token is sampled from the top k of the whole vocabulary; one token more than the frame has is sampled, and
  dropped;
- the frame is decoded alone.

The loop calls the modules of the model under autocast. Unlike the published code, it does not encode blank future
frames, apply dropout, keep the hidden states of all layers, or recompute the keys and values of the context for the
tokenizer's decoder at every frame.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodel.ivideogpt.attention import causal_attention, rotate
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.precision import autocast
from worldmodel.ivideogpt.transformer.llama import DecoderLayer
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

Past = list[tuple[Tensor, Tensor]]  # keys and values [B, h, L, d] of each layer


@torch.no_grad()
def imagine(model: IVideoGPT, context: TensorDict, actions: Tensor, decode: bool = True) -> Tensor:
    """Imagine frames.

    Args:
        model: iVideoGPT.
        context: `pixels` uint8 [B, C, 3, R, R].
        actions: [B, H, A].
        decode: whether frames are decoded to pixels.

    Returns:
        Tokens, int64 [B, H, n].
    """
    transformer, tokenizer, layout = model.transformer, model.tokenizer, model.layout
    frame_heads, embedding, frames_so_far = transformer.frame_heads, transformer.llm.model.embed_tokens, []
    top_k = model.rollouts.sampling.top_k or layout.vocabulary
    with autocast(actions, model.precision):
        frames = context["pixels"].float() / 255
        codes, _ = tokenizer.encode_context(frames)
        features = tokenizer.context_features_for_decoder(codes, frames)
        slot = codes.new_full((len(codes), 1), layout.slot)
        prefix = embedding(torch.cat([layout.join(codes), slot], 1))
        for action in actions.unbind(1):
            conditioning = frame_heads.condition(action, None)
            assert conditioning is not None
            prefix[:, -1] += conditioning
            conditioning = conditioning.unsqueeze(1) * transformer.condition_tokens
            past: Past = []
            hidden = forward(transformer, prefix, past)
            frame = [sample_token(transformer.llm.lm_head(hidden).float()[:, -1], top_k)]
            for _ in range(layout.dynamics_tokens):
                hidden = forward(transformer, embedding(frame[-1]) + conditioning, past)
                frame.append(sample_token(transformer.llm.lm_head(hidden).float()[:, -1], top_k))
            frame_heads.rewards(hidden[:, -1])
            frames_so_far.append(torch.cat(frame[:-1], 1))
            prefix = torch.cat([prefix, embedding(frames_so_far[-1]) + conditioning, embedding(slot)], 1)
            if decode:
                pixels = tokenizer.decode_dynamics(layout.codes(frames_so_far[-1]).unsqueeze(1), features)
                pixels.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return torch.stack(frames_so_far, 1)


def forward(transformer: VideoTransformer, x: Tensor, past: Past) -> Tensor:
    """Run the decoder layers.

    Args:
        transformer: the transformer.
        x: embeddings, [B, L, D].
        past: keys and values of earlier positions, or empty; those of this call are added to it.

    Returns:
        Final hidden states, [B, L, D].
    """
    first = past[0][0].shape[2] if past else 0
    cos, sin = transformer.cos[first : first + x.shape[1]], transformer.sin[first : first + x.shape[1]]
    for index, layer in enumerate(transformer.llm.model.layers):
        assert isinstance(layer, DecoderLayer)
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            proj(normed).unflatten(-1, (transformer.heads, -1)).transpose(1, 2)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if index == len(past):
            past.append((k, v))
            attended = causal_attention(q, k, v)
        else:
            k, v = torch.cat([past[index][0], k], 2), torch.cat([past[index][1], v], 2)
            past[index] = k, v
            attended = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
        x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    hidden: Tensor = transformer.llm.model.norm(x)
    return hidden


def sample_token(logits: Tensor, top_k: int) -> Tensor:
    """Sample tokens [B, 1] from the `top_k` most likely of logits [B, V]."""
    least = logits.topk(top_k).values[:, -1:]
    return torch.multinomial(logits.masked_fill(logits < least, float("-inf")).softmax(-1), 1)
