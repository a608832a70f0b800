"""Pictures that no category can be found in, told by bounds alone, for a detector that is asked for decisions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guardcore.detector.measurement import Measurement, boxes_of, measure
from guardcore.detector.packing import PackedPatches
from guardcore.detector.scoring import Scoring, weights_of
from guardcore.detector.verdict import ScreenError
from guardcore.ops import ScreenOutput, sinkhorn_screen_packed
from guardcore.patches import PatchSet
from guardcore.prototypes.bank import PrototypeBank


@dataclass(frozen=True, eq=False)
class Clearance:
    """A picture that no category can be found in.

    bound: fp32 [C], at most the statistic of each category and above the threshold at which it is found; boxes: int64
        [N, 4] or None for `views`; size: width, height.
    """

    bound: NDArray[np.float32]
    boxes: NDArray[np.int64] | None
    size: tuple[int, int]


def check_bounded(scoring: Scoring) -> None:
    """Raise ValueError unless the rule's statistic has a lower bound that is cheaper than itself."""
    if scoring.rule != "normalized" or scoring.pool != 1:
        got = scoring.rule if scoring.rule != "normalized" else f"normalized with pool {scoring.pool}"
        raise ValueError(
            f"decisions_only: expected the scoring rule 'normalized' with pool 1, which has a bound; got {got!r} "
            "(`softmax` and the cosines take no iterations that a bound could save)"
        )


def measure_suspects(
    sets: Sequence[PatchSet], bank: PrototypeBank, scoring: Scoring, thresholds: NDArray[np.float32]
) -> list[Measurement | Clearance | ScreenError]:
    """Clear pictures whose statistics are proved to be above all thresholds [C]; `measure` the rest."""
    screened = _screen(PackedPatches.pack(sets), bank, scoring, torch.from_numpy(thresholds))
    clear, bound = screened.cleared.all(dim=1).tolist(), screened.bound.cpu().numpy()
    suspects = [item for item, cleared in zip(sets, clear, strict=True) if not cleared]
    measured = iter(measure(suspects, bank, scoring) if suspects else ())
    return [
        Clearance(bound[i], boxes_of(item), item.size) if clear[i] else next(measured) for i, item in enumerate(sets)
    ]


def _screen(packed: PackedPatches, bank: PrototypeBank, scoring: Scoring, thresholds: Tensor) -> ScreenOutput:
    device = packed.embeddings.device
    prototypes, mass, limits = (each.to(device) for each in (bank.prototypes, bank.weights, thresholds))
    points = (packed.embeddings, packed.cu_seqlens, prototypes, limits, weights_of(packed, bank, scoring), mass)
    return sinkhorn_screen_packed(*points, **scoring.solver_options(bank))
