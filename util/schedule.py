"""The learning rate of each update."""

import math


def learning_rate(step: int, total: int, peak: float, warmup: int = 0, final: float = 0.0) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then a half-cosine to `final` at step `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
