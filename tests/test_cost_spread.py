"""The scale that epsilon refers to: how much a patch's costs differ between prototypes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore.encoders.protocol import ImageEmbedding
from guardcore.policy.policy import Policy
from guardcore.prototypes.bank import SMALLEST_SPREAD, PrototypeBank, image_cost_spread


class RowEncoder:
    """Gives the text "i" row i of a table."""

    name, fingerprint, image_size, grid = "rows", "0" * 64, 8, 2

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self.rows = torch.tensor(rows, dtype=torch.float32)
        self.width = self.rows.shape[1]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self.rows[[int(text) for text in texts]]

    def preprocess(self, images: Sequence[Any]) -> Tensor:
        raise NotImplementedError

    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        raise NotImplementedError


def make_policy(count: int) -> Policy:
    category = {"name": "c", "nouns": [str(i) for i in range(count)]}
    return Policy.from_data({"name": "p", "templates": ["{}"], "categories": [category]})


def bank_of(*rows: Sequence[float]) -> PrototypeBank:
    return PrototypeBank.build(make_policy(len(rows)), RowEncoder(rows))


def test_between_texts_is_the_deviation_from_the_row_mean() -> None:
    # Cosines 0, 0.6 and 0.8: each vector's costs to the others are (1, .4), (1, .2) and (.4, .2).
    bank = bank_of([1, 0], [0, 1], [0.6, 0.8])
    assert bank.cost_spread == pytest.approx(math.sqrt((0.3**2 + 0.4**2 + 0.1**2) / 3), abs=1e-6)
    assert bank.spread_source == "texts"


@pytest.mark.parametrize("count", [1, 2])
def test_is_positive_for_the_smallest_banks(count: int) -> None:
    assert bank_of(*torch.eye(3)[:count].tolist()).cost_spread == SMALLEST_SPREAD


def test_between_images_and_texts() -> None:
    # Costs (1, 0) and (0.4, 0.2), whatever the length: variances 0.25 and 0.01.
    patches = torch.tensor([[0.0, 5.0], [0.6, 0.8]])
    expected = math.sqrt((0.25 + 0.01) / 2)
    assert image_cost_spread(patches, bank_of([1, 0], [0, 1])) == pytest.approx(expected, abs=1e-6)
    assert image_cost_spread(patches.bfloat16(), bank_of([1, 0], [0, 1])) == pytest.approx(expected, rel=1e-2)


def test_takes_out_what_all_costs_of_a_patch_share() -> None:
    # Both prototypes lie 0.8 along the last axis, as CLIP-like texts share a direction; costs differ by 0.6 * 0.6 only.
    bank = bank_of([0.6, 0, 0.8], [0, 0.6, 0.8])
    patches = torch.tensor([[0.6, 0.0, 0.8], [0.6, 0.0, -0.8]])  # mean costs 0.18 and 1.46
    assert image_cost_spread(patches, bank) == pytest.approx(0.18, abs=1e-6)


def test_counts_neutral_anchors_too() -> None:
    policy = Policy.from_data(make_policy(2).model_dump() | {"neutral": ["2"]})
    bank = PrototypeBank.build(policy, RowEncoder(torch.eye(3).tolist()))
    costs = torch.tensor([0.0, 1.0, 1.0])
    expected = costs.std(correction=0).item()
    assert image_cost_spread(torch.tensor([[1.0, 0.0, 0.0]]), bank) == pytest.approx(expected, abs=1e-6)


def test_leaves_out_broken_patches() -> None:
    bank = bank_of([1, 0], [0, 1])
    patches = torch.tensor([[3.0, 4.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    assert image_cost_spread(patches.view(2, 2, 2), bank) == image_cost_spread(patches[:1], bank)


def test_refuses_nothing_and_another_width() -> None:
    bank = bank_of([1, 0], [0, 1])
    with pytest.raises(ValueError, match="at least one finite"):
        image_cost_spread(torch.zeros(4, 2), bank)
    with pytest.raises(ValueError, match="expected width 2; got 8"):
        image_cost_spread(torch.ones(4, 8), bank)


def test_can_be_measured_later_and_is_kept(tmp_path: Path) -> None:
    bank = bank_of([1, 0], [0, 1])
    measured = bank.with_cost_spread(0.015)
    assert (measured.cost_spread, measured.spread_source) == (0.015, "images")
    assert measured.fingerprint == bank.fingerprint
    measured.save(tmp_path / "bank")
    again = PrototypeBank.load(tmp_path / "bank", make_policy(2), RowEncoder([[1, 0]]))
    assert (again.cost_spread, again.spread_source) == (0.015, "images")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 2])
def test_an_impossible_measurement_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="cost_spread"):
        bank_of([1, 0], [0, 1]).with_cost_spread(value)
