"""The last steps of a vision tower, from hidden states to patch vectors in the joint space.

Only the global vector of CLIP and SigLIP was trained to match text. For a patch there are three readings, named by
`Features`; with x the input of the last block and n1, v, o, n2, mlp, post its parts and the norm after it:

    tokens      h = the block's own output (attention mixes the patches)
    value-path  y = x + o(v(n1(x))), h = y + mlp(n2(y))     (attention is the identity: each patch attends to itself)
    value-only  h = o(v(n1(x)))                             (and neither residual nor MLP)

each followed by project(post(h)): CLIP's linear projection, or SigLIP's attention pool over that single token, for
which attention is the identity as well: z = o(v(t)), then z + mlp(n(z)). The value path is that of MaskCLIP (Zhou et
al., arXiv 2112.01071); that residual and MLP blur patches is the finding of ClearCLIP (Lan et al., arXiv 2407.12442),
whose query-query attention is left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from guardcore.encoders.tower import Activation, Tower

Features = Literal["tokens", "value-path", "value-only"]


def check_features(features: str) -> Features:
    """Return `features` when it is one of the readings.

    Raises:
        ValueError: it is not; the message lists them.
    """
    for known in get_args(Features):
        if features == known:
            return known
    raise ValueError(f"features: expected one of {list(get_args(Features))}; got {features!r}")


@dataclass(frozen=True)
class Tail:
    """Last block, post-norm and projection or pool of a tower, computed from its canonical weights.

    Hidden states are `[B, T, W]` in the weights' dtype; T counts the class token where the tower has one.
    """

    tower: Tower

    @property
    def prefix(self) -> int:
        """Tokens before the patches: 1 (class token) for CLIP, 0 for SigLIP."""
        return 1 if "embed.class" in self.tower.weights else 0

    @property
    def width(self) -> int:
        """Dimension D of the joint space."""
        weights = self.tower.weights
        return int(weights["projection" if "projection" in weights else "norm.weight"].shape[0])

    def patches(self, before: Tensor, after: Tensor, features: Features) -> Tensor:
        """Return patch vectors `[B, N, D]` from the hidden states before and after the last block."""
        if features == "tokens":
            return self.project(after[:, self.prefix :])
        return self.project(self.value_path(before[:, self.prefix :], whole=features == "value-path"))

    def value_path(self, hidden: Tensor, *, whole: bool) -> Tensor:
        """Run the last block with attention as the identity; `whole` keeps residual and MLP."""
        block = f"block.{self.tower.depth - 1}"
        mixed = self._linear(f"{block}.out", self._linear(f"{block}.value", self._norm(f"{block}.norm1", hidden)))
        return self._mlp(block, hidden + self._scaled(f"{block}.scale1", mixed)) if whole else mixed

    def block(self, index: int, hidden: Tensor) -> Tensor:
        """Run one whole block."""
        block = f"block.{index}"
        normed = self._norm(f"{block}.norm1", hidden)
        mixed = self._attention(block, normed, normed)
        return self._mlp(block, hidden + self._scaled(f"{block}.scale1", mixed))

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens after the last block `[..., W]` to the joint space `[..., D]`, each by itself."""
        tokens = self._norm("norm", tokens)
        if "projection" in self.tower.weights:
            return functional.linear(tokens, self.tower.weights["projection"])
        return self._pool_mlp(self._linear("pool.out", self._linear("pool.value", tokens)))

    def image(self, hidden: Tensor) -> Tensor:
        """Return the global vector `[B, D]`: the projected class token, or the attention pool over all patches."""
        if self.prefix:
            return self.project(hidden[:, 0])
        tokens = self._norm("norm", hidden)
        probe = self.tower.weights["pool.probe"].expand(len(hidden), 1, -1)
        return self._pool_mlp(self._attention("pool", probe, tokens))[:, 0]

    def _attention(self, prefix: str, queries: Tensor, keys: Tensor) -> Tensor:
        query, key, value = (
            self._linear(f"{prefix}.{part}", source).reshape(*source.shape[:2], self.tower.heads, -1).transpose(1, 2)
            for part, source in (("query", queries), ("key", keys), ("value", keys))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self._linear(f"{prefix}.out", mixed.transpose(1, 2).flatten(2))

    def _mlp(self, block: str, hidden: Tensor) -> Tensor:
        grown = self._linear(f"{block}.expand", self._norm(f"{block}.norm2", hidden))
        shrunk = self._linear(f"{block}.contract", _activate(self.tower.activation, grown))
        return hidden + self._scaled(f"{block}.scale2", shrunk)

    def _pool_mlp(self, pooled: Tensor) -> Tensor:
        grown = _activate(self.tower.activation, self._linear("pool.expand", self._norm("pool.norm", pooled)))
        return pooled + self._linear("pool.contract", grown)

    def _linear(self, name: str, tokens: Tensor) -> Tensor:
        weights = self.tower.weights
        return functional.linear(tokens, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def _norm(self, name: str, tokens: Tensor) -> Tensor:
        weights = self.tower.weights
        shape = (tokens.shape[-1],)
        return functional.layer_norm(
            tokens, shape, weights[f"{name}.weight"], weights[f"{name}.bias"], self.tower.epsilon
        )

    def _scaled(self, name: str, tokens: Tensor) -> Tensor:
        scale = self.tower.weights.get(name)
        return tokens if scale is None else tokens * scale


def _activate(activation: Activation, tokens: Tensor) -> Tensor:
    if activation == "quick_gelu":
        return tokens * torch.sigmoid(1.702 * tokens)
    return functional.gelu(tokens, approximate="tanh" if activation == "gelu_tanh" else "none")
