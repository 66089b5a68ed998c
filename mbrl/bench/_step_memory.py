"""One training step in a process of its own. Prints the peak memory in bytes.

Arguments: part, batch size, name of a file in configs/worldmodel. The part "all positions" is the transformer with
logits over the whole vocabulary at every position, as published.
"""

from __future__ import annotations

import resource
import sys

import torch
from torch.nn import functional as F

from mbrl.bench._models import build, segments
from mbrl.bench.training import step
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.precision import autocast
from worldmodel.ivideogpt.training import gradient_step


def published_step(model: IVideoGPT, batch: int) -> None:
    """One step of the transformer as published: logits at all positions and for all tokens."""
    segment, prefix = model.rollouts.reader(segments(model, batch)), model.layout.prefix
    model.transformer.train()
    with autocast(segment.pixels, model.precision):
        tokens = model.tokenizer.tokenize(segment.frames)
        logits, _ = model.transformer(tokens, segment.actions)
        targets = tokens.clone()
        targets[:, : prefix + 1] = -100  # The context and the first slot have no loss.
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten())
    optimizer = model.optimizers["transformer"]
    gradient_step(optimizer, loss, done=0, warmup=1, clip_norm=1.0, name="transformer")


def main(part: str, batch: int, name: str) -> None:
    """Take the step and print the peak memory of the process in bytes."""
    torch.manual_seed(0)
    model = build(name)
    if part == "all positions":
        published_step(model, batch)
    else:
        step(model, part, segments(model, batch))
    sys.stdout.write(f"{1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
