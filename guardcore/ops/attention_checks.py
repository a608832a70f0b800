"""What calibrated attention accepts. Each check names the argument, what was expected and what came.

Shapes, dtypes, devices and options are checked by the public call and by the fake; values only by the public call, on
the CPU and outside a trace. Elsewhere a bad value is a NaN result (CUDA) or the C++ kernel's own RuntimeError (compiled
programs on the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from guardcore.ops.checks import check_device, has_tangent, readable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of queries, keys and values
_INDEX_DTYPES = (torch.int32, torch.int64)
_MOST_CLASSES = 256  # of a uint8


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_class: Tensor,
    rule: Tensor,
    row_mask: Tensor | None,
    key_mask: Tensor | None,
    key_group: Tensor | None,
    query_start: Tensor | None,
    is_causal: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    _return_mass: bool,
) -> None:
    """Raise TypeError or ValueError unless `guardcore.ops.calibrated_attention` can take them, values apart."""
    _check_heads(query, key, value)
    (B, Hq, Q, _), K = query.shape, key.shape[2]
    check_rule(rule, B, Hq, query)
    for name, tensor, shape, dtypes in (
        ("key_class", key_class, (B, K), (torch.uint8,)),
        ("row_mask", row_mask, (B, Q), (torch.bool,)),
        ("key_mask", key_mask, (B, K), (torch.bool,)),
        ("key_group", key_group, (B, K), _INDEX_DTYPES),
        ("query_start", query_start, (B,), _INDEX_DTYPES),
    ):
        if tensor is not None:
            check_tensor(name, tensor, query, shape, dtypes)
    check_scores(scale, window, softcap)
    _check_causality(is_causal, key_group, window)


def check_attention_values(key_class: Tensor, rule: Tensor) -> None:
    """Raise ValueError at a class that the rule[..., G, 3] lacks or a rule that is not finite, where it can be seen.

    Class 0 has no rule, so that its row may hold anything; additive may be -inf.
    """
    G = rule.shape[-2]
    if readable(key_class) and readable(rule) and G < _MOST_CLASSES:
        bad = key_class >= G
        if bool(bad.any()):
            at = bad.nonzero()[0].tolist()
            raise ValueError(
                f"key_class must be below the {G} classes of rule, got {int(key_class[tuple(at)])} at {at}"
            )
    # Every layer and token comes by here. A finite sum has finite terms; one that is not says nothing yet.
    if readable(rule) and not math.isfinite(rule[..., 1:, :].sum()):
        fine = rule.isfinite()
        fine[..., 2] |= rule[..., 2] == -math.inf
        fine[..., 0, :] = True
        if not bool(fine.all()):
            at = (~fine).nonzero()[0].tolist()
            raise ValueError(f"rule must be finite (additive also -inf), got {rule[tuple(at)].item()} at {at}")


def check_no_tangent(**tensors: Tensor) -> None:
    """Raise NotImplementedError where forward-mode derivatives would be lost; not looked for in compiled programs."""
    if torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        if has_tangent(tensor):
            raise NotImplementedError(f"{name} has a tangent, but calibrated attention is inference only")


def _check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    check_query(query, "B, Hq, Q, D")
    for name, tensor in (("key", key), ("value", value)):
        check_layout(name, tensor, "B, Hkv, K, D")
    (B, Hq, _, D), (_, Hkv, K, _) = query.shape, key.shape
    check_tensor("key", key, query, (B, Hkv, K, D), (query.dtype,))
    check_tensor("value", value, query, (B, Hkv, K, D), (query.dtype,))
    check_groups(Hq, Hkv, "key")


def check_groups(query_heads: int, heads: int, name: str) -> None:
    """Raise ValueError unless the heads of keys divide those of the query."""
    if heads == 0 or query_heads % heads != 0:
        raise ValueError(f"query must have a multiple of the {heads} heads of {name}, got {query_heads}")


def check_rule(rule: Tensor, items: int, heads: int, like: Tensor) -> None:
    """Raise unless rule is [heads, G, 3] or [1 or items, heads, G, 3] float32, 1 <= G <= 256, where `like` is."""
    fits = rule.dim() in (3, 4) and rule.shape[-3] == heads and rule.shape[-1] == 3
    if not fits or (rule.dim() == 4 and rule.shape[0] not in (1, items)):
        raise ValueError(f"rule must have shape [{heads}, G, 3] or [{items}, {heads}, G, 3], got {list(rule.shape)}")
    if not 1 <= rule.shape[-2] <= _MOST_CLASSES:
        raise ValueError(f"rule must have 1 to {_MOST_CLASSES} classes, got {rule.shape[-2]}")
    if rule.dtype != torch.float32:
        raise TypeError(f"rule must be float32, got {rule.dtype}")
    check_device("rule", rule, like)


def check_tensor(
    name: str, tensor: Tensor, like: Tensor, shape: Sequence[int], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise unless the tensor has that shape, one of the dtypes and the device of another one."""
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(str(dtype) for dtype in dtypes)}, got {tensor.dtype}")
    check_device(name, tensor, like)


def check_query(query: Tensor, layout: str) -> None:
    """Raise unless query is dense, has the layout ("B, Hq, Q, D"), a dtype that the kernels know and a width."""
    check_layout("query", query, layout)
    if query.dtype not in DTYPES:
        raise TypeError(f"query must be float32, bfloat16 or float16, got {query.dtype}")
    if query.shape[-1] == 0:
        raise ValueError(f"query must have a width D >= 1, got {list(query.shape)}")


def check_layout(name: str, tensor: Tensor, layout: str) -> None:
    """Raise unless the tensor is dense and has as many dimensions as its layout."""
    if tensor.dim() != layout.count(",") + 1:
        raise ValueError(f"{name} must have shape [{layout}], got {list(tensor.shape)}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {tensor.layout}")


def check_scores(scale: float | None, window: int | None, softcap: float | None) -> None:
    """Raise ValueError unless scale and softcap are None or finite and > 0, window None or >= 1.

    By comparisons alone, which also hold for the symbolic numbers of a compiled program and fail for NaN.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be None (1 / sqrt(D)) or a finite number > 0, got {scale}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be None or a finite number > 0, got {softcap}")
    if window is not None and not window >= 1:
        raise ValueError(f"window must be None or >= 1, got {window}")


def _check_causality(is_causal: bool, key_group: Tensor | None, window: int | None) -> None:
    if window is not None and not is_causal:
        raise ValueError(f"window needs is_causal=True: it looks back only, got window {window} without")
    if key_group is not None and not is_causal:
        raise ValueError("key_group needs is_causal=True: it lifts causality, which is not there")
