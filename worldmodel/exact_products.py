"""Matrix products in full float32 on a GPU that otherwise uses TF32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute matrix products of float32 tensors on a GPU without TF32, which keeps 10 bits of each factor.

    For small differences of large numbers. It has no effect on a CPU.
    """
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
