"""Under calibrations by request, every family generates what its eager attention does with the rule by its formula.

Equal tokens alone are weak evidence for random weights, so that logits are compared too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.calibrated_batch import calibrated_batch, distance
from bench.calibration_oracle import oracle
from bench.tiny_models import FAMILIES

QUICK = ("llava", "gemma3", "mllama")  # plain, sliding and bidirectional, cross-attention
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Any]) -> Any:
    return tiny(request.param)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_follows_the_eager_oracle(model: Any, cache: str) -> None:
    batch = calibrated_batch(model)
    assert len(set(batch.padding)) == 3
    with oracle(model.model, batch.spans, batch.padding, batch.calibrations) as truth:
        expected = batch.plain(model.model)
    settings = {} if cache == "dynamic" else {"cache_implementation": cache}
    found, session = batch.traced(model.model, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    assert (distance(found, expected) <= TOLERANCE).all()
    assert type(found.past_key_values).__name__ == f"{cache.title()}Cache"

    masses = session.masses()
    assert masses[1] == ()
    assert [mass.layer for mass in masses[0]] == sorted(truth.masses)
    for index in (0, 2):
        for mass in masses[index]:
            # Rows of the third request's answer are not calibrated: its masses are of its instruction's last row.
            assert torch.tensor(mass.after).allclose(truth.masses[mass.layer][index], atol=1e-5)
            assert max(map(abs, mass.change)) > 1e-3


def test_the_calibrations_matter_and_the_request_without_one_is_as_it_was(model: Any) -> None:
    batch = calibrated_batch(model)
    change = distance(batch.calibrated(model.model), batch.plain(model.model))
    assert change[0] > 0.003
    assert change[2] > 0.003
    assert change[1] <= 1e-5


def test_the_prefixs_mass_before_is_that_of_the_plain_model(model: Any) -> None:
    batch = calibrated_batch(model)
    with oracle(model.model, batch.spans, batch.padding, [None] * 3) as truth:
        batch.plain(model.model)
    _, session = batch.traced(model.model)
    first = session.masses()[0][0]  # only in the first layer are the inputs the plain model's
    assert torch.tensor(first.before).allclose(truth.masses[first.layer][0], atol=1e-5)
