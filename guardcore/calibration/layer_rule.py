"""Calibrations of a batch of requests as tensors: what one layer's attention needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guardcore import ops
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.spans import NUM_CLASSES, TokenClass


@dataclass(frozen=True, eq=False)
class LayerRule:
    """The rules of one layer.

    Attributes:
        rule: [1 or B, Hq, NUM_CLASSES, 3] float32, as in `guardcore.ops.calibrated_attention`; zeros for a request or
            head without a rule.
        target: [1 or B, Hq] float32 in [0, 1), the prefix's least share of the attention, 0 for none; None where no
            request has one.
    """

    rule: Tensor
    target: Tensor | None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_class: Tensor,
        row_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        key_group: Tensor | None = None,
        *,
        is_causal: bool,
        query_start: Tensor | None,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        return_mass: bool = False,
    ) -> ops.AttentionOutput:
        """Attend under the rules; arguments, result and errors are those of `guardcore.ops.calibrated_attention`."""
        if self.target is None:
            return ops.calibrated_attention(
                query, key, value, key_class, self.rule, row_mask, key_mask, key_group,
                is_causal=is_causal, query_start=query_start, scale=scale, window=window, softcap=softcap,
                return_mass=return_mass,
            )  # fmt: skip
        return ops.target_mass_attention(
            query, key, value, key_class, self.rule, self.target, row_mask, key_mask, key_group,
            span_class=int(TokenClass.PREFIX), is_causal=is_causal, query_start=query_start, scale=scale,
            window=window, softcap=softcap, return_mass=return_mass,
        )  # fmt: skip


def layer_rules(
    calibrations: Sequence[AttentionCalibration | None],
    *,
    depth: int,
    heads: int,
    scale: float,
    device: torch.device | str | None = None,
) -> dict[int, LayerRule]:
    """The rules of a batch by layer; a layer in which no rule of any request changes anything is left out.

    Args:
        calibrations: one a request, None for none. If all are equal, the rules are shared: [1, ...].
        depth: layers of the model.
        heads: query heads of a layer.
        scale: of the attention's scores, > 0.
        device: where the tensors go.

    Raises:
        ValueError: a layer or head that the model does not have.
    """
    first = calibrations[0] if calibrations else None
    own = [first] if all(each == first for each in calibrations) else list(calibrations)
    tables: dict[int, Tensor] = {}
    targets: dict[int, Tensor] = {}
    for index, calibration in enumerate(own):
        if calibration is None:
            continue
        active = {name: rule for name, rule in calibration.rules.items() if rule.active}
        for layer in calibration.layer_indices(depth):
            for name, rule in active.items():
                chosen = _chosen_heads(calibration, layer, heads)
                table = tables.setdefault(layer, torch.zeros(len(own), heads, NUM_CLASSES, 3))
                if rule.kind == "target_mass":
                    targets.setdefault(layer, torch.zeros(len(own), heads))[index, chosen] = rule.strength
                else:
                    table[index, chosen, int(TokenClass[name.upper()])] = torch.tensor(rule.coefficients(scale))
    return {
        layer: LayerRule(tables[layer].to(device), targets[layer].to(device) if layer in targets else None)
        for layer in sorted(tables)
    }


def _chosen_heads(calibration: AttentionCalibration, layer: int, heads: int) -> list[int]:
    if calibration.heads is None:
        return list(range(heads))
    chosen = calibration.heads[layer]
    if chosen[-1] >= heads:
        raise ValueError(f"heads: expected below the model's {heads} heads; got {chosen[-1]} in layer {layer}")
    return list(chosen)
