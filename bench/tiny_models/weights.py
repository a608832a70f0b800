"""Random weights at which a tiny model behaves like a large one: activations of size 1, logits far apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def randomize(model: Any, embedding: float = 1.0) -> Any:
    """Give every weight of `model` a random value, drawn from torch's generator in the order of their names.

    Matrices get N(0, 1 / fan in), so that activations, attention scores and logits have standard deviation of about 1:
    the gap between the two largest logits is some 1e5 times the noise of float32, and greedy tokens are comparable
    between kernels. Norms, biases and gates get their initial value plus N(0, 0.1^2), embeddings N(0, `embedding`^2).
    Transformers' own initialization (0.02) makes attention of a tiny model uniform and its layers void.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for _, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, dtype=torch.float32)
        if parameter.ndim < 2:
            parameter.add_(0.1 * noise)
        else:
            parameter.copy_(noise * (embedding if id(parameter) in tables else parameter[0].numel() ** -0.5))
    return model.float().eval()
