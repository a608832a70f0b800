"""The attention function and the mask function that an attachment registers with transformers.

Both ask one context variable for the session of the running generation. A layer without a rule, a thread that is not
generating, a plain call of the model: the function that the model had before gets the arguments as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from guardcore.adapters.transformers.session import Pass, Session
from guardcore.adapters.transformers.support import UnsupportedError, is_cross_attention
from guardcore.calibration.layer_rule import LayerRule
from guardcore.calibration.spans import TokenClass
from guardcore.ops import AttentionOutput

Running = ContextVar[Session | None]
# What hosts hand to an attention function and calibrated attention does not know.
_UNKNOWN: Mapping[str, str] = {
    "position_bias": "a bias on its scores",
    "s_aux": "attention sinks",
    "cache": "a paged cache",
}


def attention_function(running: Running, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function for AttentionInterface: `original`, but for layers with a rule in the session that is running."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        session = running.get()
        layer = getattr(module, "layer_idx", None)
        rule = None if session is None or layer is None else session.layers.get(layer)
        if session is None or rule is None:
            return original(module, query, key, value, attention_mask, **options)
        if is_cross_attention(module):
            return _cross(session, rule, original, module, query, key, value, attention_mask, options)
        _check(module, options)
        return _calibrated(session, rule, module, query, key, value, attention_mask, options), None

    return attention


def mask_function(running: Running, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function for AttentionMaskInterface: `original`, whose arguments the running session takes note of."""

    def mask(**arguments: Any) -> Any:
        session = running.get()
        if session is not None:
            session.see(arguments)
        return original(**arguments)

    return mask


def _calibrated(
    session: Session,
    rule: LayerRule,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: Mapping[str, Any],
) -> Tensor:
    """Self-attention under the rule: [B, Q, Hq, D], contiguous."""
    now = session.current(query.shape[2], key.shape[2], _window(module, options))
    scale, softcap = _scale(module, options), options.get("softcap")
    # Without a mask the original attends by this flag alone; a mask has it in itself.
    flag = options.get("is_causal")
    is_causal = attention_mask is not None or bool(getattr(module, "is_causal", True) if flag is None else flag)
    if session.traces and now.measured is not None:
        masses = _masses(session, rule, now, query, key, value, scale=scale, softcap=softcap)
        session.record(module.layer_idx, *masses, now.measured)
    attended = _attend(rule, now, query, key, value, is_causal=is_causal, scale=scale, softcap=softcap)
    return attended.output.transpose(1, 2)


def _attend(
    rule: LayerRule, now: Pass, query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, **options: Any
) -> AttentionOutput:
    sees = now.sees
    return rule.attend(
        query, key, value, now.key_class, now.row_mask, sees.key_mask, sees.key_group if is_causal else None,
        is_causal=is_causal, query_start=sees.query_start, window=sees.window if is_causal else None, **options,
    )  # fmt: skip


def _masses(
    session: Session, rule: LayerRule, now: Pass, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Share of the prefix in the attention of a calibrated row [requests] without and with the rule: [requests, Hq]."""
    query, key, value = (session.one_of_each(each) for each in (query, key, value))
    assert now.measured is not None
    rows = now.measured.clamp(min=0)
    query = query.gather(2, rows[:, None, None, None].expand(-1, query.shape[1], 1, query.shape[3]))
    key_class, sees = session.one_of_each(now.key_class), now.sees
    key_mask, key_group = (
        None if each is None else session.one_of_each(each) for each in (sees.key_mask, sees.key_group)
    )
    first = sees.query_start
    if first is None:
        first = torch.full((sees.batch,), sees.keys - sees.rows, dtype=torch.int64, device=query.device)
    start = session.one_of_each(first) + rows
    own = LayerRule(session.one_of_each(rule.rule), None if rule.target is None else session.one_of_each(rule.target))
    shares = []
    for each in (LayerRule(torch.zeros_like(own.rule), None), own):
        attended = each.attend(
            query, key, value, key_class, None, key_mask, key_group,
            is_causal=True, query_start=start, window=sees.window, return_mass=True, **options,
        )  # fmt: skip
        assert attended.mass is not None
        shares.append(attended.mass[:, :, 0, int(TokenClass.PREFIX)])
    return shares[0], shares[1]


def _cross(
    session: Session,
    rule: LayerRule,
    original: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: dict[str, Any],
) -> Any:
    """Attention to the keys of pictures: their class is IMAGE, and rules for anything else say nothing here."""
    row_mask = session.current_rows(query.shape[2])
    if not session.rules_images or row_mask is None:
        return original(module, query, key, value, attention_mask, **options)
    _check(module, options)
    attended = rule.attend(
        query, key, value, session.image_class(key.shape[2]), row_mask, _hidden_keys(attention_mask),
        is_causal=False, query_start=None, scale=_scale(module, options), window=None, softcap=options.get("softcap"),
    )  # fmt: skip
    return attended.output.transpose(1, 2), None


def _hidden_keys(attention_mask: Tensor | None) -> Tensor | None:
    """[B, K] of a mask[B, 1, Q, K], bool or additive, in which rows see either these keys or, by custom, all of them.

    mllama lets text before its picture see every key, and then throws the result away.
    """
    if attention_mask is None:
        return None
    seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    seen = seen[:, 0]
    if torch.compiler.is_compiling():
        return seen[:, -1]
    if not bool(((seen == seen[:, -1:]) | seen.all(-1, keepdim=True)).all()):
        raise UnsupportedError(
            "rows of its cross-attention see different pictures; a rule for images needs one set for all"
        )
    return seen[:, -1]


def _window(module: Any, options: Mapping[str, Any]) -> int | None:
    """The window that the host means for a layer; its masks are told apart by it."""
    kinds = getattr(module.config, "layer_types", None)
    if kinds:
        return module.config.sliding_window if kinds[module.layer_idx] == "sliding_attention" else None
    return options.get("sliding_window", getattr(module, "sliding_window", None))


def _scale(module: Any, options: Mapping[str, Any]) -> float | None:
    scale = options.get("scaling")
    return getattr(module, "scaling", None) if scale is None else scale


def _check(module: Any, options: Mapping[str, Any]) -> None:
    for name, what in _UNKNOWN.items():
        if options.get(name) is not None:
            raise UnsupportedError(f"layer {module.layer_idx} ({type(module).__name__}) has {what} ({name})")
    if options.get("dropout", 0.0):
        raise UnsupportedError(f"layer {module.layer_idx} has dropout: put the model in evaluation mode")
