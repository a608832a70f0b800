"""What a scoring rule says of pictures, before any verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guardcore.detector.packing import PackedPatches
from guardcore.detector.scoring import Scoring
from guardcore.detector.verdict import ScreenError
from guardcore.patches import PatchSet
from guardcore.prototypes.bank import PrototypeBank


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a scoring rule says of one picture, before any threshold.

    statistic, distance: float64 [C]; patch_scores: fp32 [C, N]; boxes: int64 [N, 4] or None for `views`; size: width,
        height.
    """

    statistic: NDArray[np.float64]
    distance: NDArray[np.float64]
    patch_scores: NDArray[np.float32]
    boxes: NDArray[np.int64] | None
    size: tuple[int, int]


def measure(sets: Sequence[PatchSet], bank: PrototypeBank, scoring: Scoring) -> list[Measurement | ScreenError]:
    """Score embedded pictures; one whose scores are not finite becomes an error, the others are not touched."""
    packed = PackedPatches.pack(sets)
    scores = scoring.score(packed, bank)
    edges = packed.cu_seqlens.tolist()
    patch = scores.patch.float().cpu().numpy()
    statistic, distance = scores.statistic.double().cpu().numpy(), scores.distance.double().cpu().numpy()
    return [
        _measurement(statistic[i], distance[i], patch[:, edges[i] : edges[i + 1]], item) for i, item in enumerate(sets)
    ]


def _measurement(
    statistic: NDArray[np.float64], distance: NDArray[np.float64], patch: NDArray[np.float32], item: PatchSet
) -> Measurement | ScreenError:
    if not all(np.isfinite(values).all() for values in (statistic, distance, patch)):
        return ScreenError("non-finite-embedding", "the encoder gave NaN or infinity for this picture")
    return Measurement(statistic, distance, np.ascontiguousarray(patch), boxes_of(item), item.size)


def boxes_of(item: PatchSet) -> NDArray[np.int64] | None:
    """Of each patch, int64 [N, 4]; None where patches have no place."""
    return None if item.boxes is None else item.boxes.cpu().numpy()
