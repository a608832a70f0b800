"""A vision tower's weights under one set of names, whichever library holds them, and their hash.

    embed.patch.{weight,bias}  embed.class [W]  embed.position [L, W]  embed.norm.{weight,bias}
    block.I.{norm1,query,key,value,out,norm2,expand,contract}.{weight,bias}  block.I.{scale1,scale2} [W]
    norm.{weight,bias}  projection [D, W]  pool.probe [W]  pool.{query,key,value,out,norm,expand,contract}.{weight,bias}

W is the tower's width, L its positions, D the joint width. CLIP has a projection, SigLIP an attention pool.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guardcore.encoders.fingerprint import tensors_digest

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

# Pattern and canonical name, a library at a time; the first whose marker occurs among the names is taken.
_TRANSFORMERS = {
    r"embeddings\.class_embedding": "embed.class",
    r"embeddings\.patch_embedding\.": "embed.patch.",
    r"embeddings\.position_embedding\.weight": "embed.position",
    r"pre_layrnorm\.": "embed.norm.",
    r"encoder\.layers\.(\d+)\.layer_norm([12])\.": r"block.\1.norm\2.",
    r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.": r"block.\1.query.",
    r"encoder\.layers\.(\d+)\.self_attn\.k_proj\.": r"block.\1.key.",
    r"encoder\.layers\.(\d+)\.self_attn\.v_proj\.": r"block.\1.value.",
    r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.": r"block.\1.out.",
    r"encoder\.layers\.(\d+)\.mlp\.fc1\.": r"block.\1.expand.",
    r"encoder\.layers\.(\d+)\.mlp\.fc2\.": r"block.\1.contract.",
    r"post_layernorm\.": "norm.",
    r"head\.probe": "pool.probe",
    r"head\.attention\.in_proj_": "pool.qkv.",
    r"head\.attention\.out_proj\.": "pool.out.",
    r"head\.layernorm\.": "pool.norm.",
    r"head\.mlp\.fc1\.": "pool.expand.",
    r"head\.mlp\.fc2\.": "pool.contract.",
}
_OPEN_CLIP = {
    r"class_embedding": "embed.class",
    r"conv1\.": "embed.patch.",
    r"positional_embedding": "embed.position",
    r"ln_pre\.": "embed.norm.",
    r"transformer\.resblocks\.(\d+)\.ln_([12])\.": r"block.\1.norm\2.",
    r"transformer\.resblocks\.(\d+)\.ls_([12])\.gamma": r"block.\1.scale\2",
    r"transformer\.resblocks\.(\d+)\.attn\.in_proj_": r"block.\1.qkv.",
    r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.": r"block.\1.out.",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.": r"block.\1.expand.",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.": r"block.\1.contract.",
    r"ln_post\.": "norm.",
    r"proj": "transposed.projection",
}
_TIMM = {
    r"trunk\.patch_embed\.proj\.": "embed.patch.",
    r"trunk\.pos_embed": "embed.position",
    r"trunk\.blocks\.(\d+)\.norm([12])\.": r"block.\1.norm\2.",
    r"trunk\.blocks\.(\d+)\.attn\.qkv\.": r"block.\1.qkv.",
    r"trunk\.blocks\.(\d+)\.attn\.proj\.": r"block.\1.out.",
    r"trunk\.blocks\.(\d+)\.mlp\.fc1\.": r"block.\1.expand.",
    r"trunk\.blocks\.(\d+)\.mlp\.fc2\.": r"block.\1.contract.",
    r"trunk\.norm\.": "norm.",
    r"trunk\.attn_pool\.latent": "pool.probe",
    r"trunk\.attn_pool\.q\.": "pool.query.",
    r"trunk\.attn_pool\.kv\.": "pool.kv.",
    r"trunk\.attn_pool\.proj\.": "pool.out.",
    r"trunk\.attn_pool\.norm\.": "pool.norm.",
    r"trunk\.attn_pool\.mlp\.fc1\.": "pool.expand.",
    r"trunk\.attn_pool\.mlp\.fc2\.": "pool.contract.",
}
_LIBRARIES = {
    "embeddings.patch_embedding.weight": _TRANSFORMERS,
    "conv1.weight": _OPEN_CLIP,
    "trunk.patch_embed.proj.weight": _TIMM,
}
_FUSED = {"qkv": ("query", "key", "value"), "kv": ("key", "value")}


@dataclass(frozen=True)
class Tower:
    """A vision tower: canonical weights (views of the library's own, no copy) and what the weights do not say.

    Attributes:
        weights: canonical name to tensor.
        depth: number of blocks.
        heads: attention heads a block.
        activation: of the MLPs.
        epsilon: of the layer norms.
    """

    weights: Mapping[str, Tensor]
    depth: int
    heads: int
    activation: Activation
    epsilon: float

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the patch embedding, hence of the tower."""
        return self.weights["embed.patch.weight"].dtype

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.weights["embed.patch.weight"].shape[-1])

    def sections(self, dtype: torch.dtype | None = None) -> tuple[str, ...]:
        """Return SHA-256 digests of the embeddings and of each block, as they would be in `dtype` (default: as held).

        Post-norm and head are left out: vision-language checkpoints drop or ignore them.
        """
        prefixes = ["embed.", *(f"block.{index}." for index in range(self.depth))]
        return tuple(tensors_digest(self._section(prefix, dtype or self.dtype)) for prefix in prefixes)

    def exact_in(self, dtype: torch.dtype) -> bool:
        """Whether embeddings and blocks survive a cast to `dtype` and back unchanged."""
        parts = (tensor for name, tensor in self.weights.items() if name.startswith(("embed.", "block.")))
        return dtype == self.dtype or all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in parts)

    def _section(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: tensor.to(dtype) for name, tensor in self.weights.items() if name.startswith(prefix)}


def tower_hash(sections: tuple[str, ...], depth: int) -> str:
    """SHA-256 hex of the embeddings and the first `depth` blocks: equal for equal weights, whoever holds them."""
    return hashlib.sha256("".join(sections[: depth + 1]).encode()).hexdigest()


def read_tower(module: nn.Module, projection: Tensor | None = None) -> Tower:
    """Read a CLIP or SigLIP vision transformer of transformers, open_clip or timm (inside open_clip).

    Args:
        module: `CLIPVisionModel`, `SiglipVisionModel`, open_clip's `VisionTransformer` or `TimmModel`.
        projection: `[D, W]`, for transformers, which keeps it outside the tower.

    Raises:
        ValueError: the architecture is another one, has parts that are unknown here, or is quantized; it is named.
    """
    weights = dict(_canonical(module))
    if projection is not None:
        weights["projection"] = projection.detach()
    wrong = [name for name, tensor in weights.items() if not tensor.is_floating_point()]
    if wrong:
        raise ValueError(f"vision tower: expected floating-point weights; got quantized {wrong[0]}")
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("block."))
    return Tower(weights, depth, *_settings(module))


def _canonical(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    held = {name.removeprefix("vision_model."): tensor for name, tensor in module.state_dict().items()}
    renames = next((table for marker, table in _LIBRARIES.items() if marker in held), None)
    if renames is None:
        raise ValueError(f"vision tower: expected a CLIP or SigLIP vision transformer; got {type(module).__name__}")
    for name, tensor in held.items():
        yield from _split(_rename(name, renames, module), tensor.detach())


def _rename(name: str, renames: Mapping[str, str], module: nn.Module) -> str:
    for pattern, canonical in renames.items():
        # A pattern that ends in a separator is a prefix (weight or bias follows); any other is the whole name.
        match = re.match(pattern if pattern[-1] in "._" else f"{pattern}$", name)
        if match:
            return match.expand(canonical) + name[match.end() :]
    raise ValueError(f"vision tower: {type(module).__name__} has {name}, which is no part of a plain CLIP or SigLIP")


def _split(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name in ("embed.class", "embed.position", "pool.probe"):
        tensor = tensor.reshape(-1, tensor.shape[-1]) if name == "embed.position" else tensor.reshape(-1)
    if name.startswith("transposed."):
        name, tensor = name.removeprefix("transposed."), tensor.T
    *head, fused, last = ["", "", *name.split(".")]
    if fused not in _FUSED:
        yield name, tensor
        return
    parts = _FUSED[fused]
    for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
        yield ".".join([*filter(None, head), part, last]), piece


def _settings(module: Any) -> tuple[int, Activation, float]:
    """Heads, activation and layer-norm epsilon: a configuration says so, or the last block's own modules."""
    if hasattr(module, "config"):
        config = module.config
        return config.num_attention_heads, _activation(config.hidden_act), config.layer_norm_eps
    if hasattr(module, "trunk"):
        block = module.trunk.blocks[-1]
        return block.attn.num_heads, _activation(block.mlp.act), block.norm1.eps
    block = module.transformer.resblocks[-1]
    return block.attn.num_heads, _activation(block.mlp.gelu), block.ln_1.eps


def _activation(given: str | nn.Module) -> Activation:
    if isinstance(given, nn.GELU):
        given = "gelu_tanh" if given.approximate == "tanh" else "gelu"
    elif isinstance(given, nn.Module):
        given = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}.get(type(given).__name__, type(given).__name__)
    names: dict[str, Activation] = {
        "gelu": "gelu",
        "gelu_tanh": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "quick_gelu": "quick_gelu",
    }
    if given not in names:
        raise ValueError(f"vision tower: expected one of the activations {sorted(names)}; got {given!r}")
    return names[given]
