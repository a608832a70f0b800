"""K streamed as bfloat16, for bfloat16 inputs: its rounding costs less than theirs, and nothing where it underflows.

Under the interpreter; fields and grids as in test_interpreter.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore import reference

# N, M, D, epsilon, relaxation: streamed classes, few rows and many
PROBLEMS = [(257, 3, 64, 0.05, None), (300, 20, 64, 0.02, 0.05), (20, 33, 64, 0.05, None), (12, 70, 64, 0.02, None)]
PER_PATCH = ("patch_cost", "patch_score", "f")


def points(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.7


def exact(operator: str, *arguments: Any) -> Any:
    doubles = (v.double() if torch.is_tensor(v) and v.is_floating_point() else v for v in arguments)
    return getattr(reference, operator)(*doubles)


def spread(values: Tensor) -> float:
    """Root mean square."""
    return float(values.double().square().mean().sqrt())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_rounding_k_costs_less_than_rounding_the_inputs(interpreted: Callable[..., Any], problem: Any) -> None:
    N, M, D, epsilon, relaxation = problem
    x, p = points(1, N, D, seed=1), points(1, M, D, seed=2)
    options = (None, None, epsilon, 12, 0.0, relaxation)
    got = interpreted("sinkhorn", x.bfloat16(), p.bfloat16(), *options)
    want, unrounded = exact("sinkhorn", x.bfloat16(), p.bfloat16(), *options), exact("sinkhorn", x, p, *options)
    ours = dict(zip(want._fields, got, strict=True))
    assert (ours["distance"] - want.distance).abs().max() <= 5e-5
    assert (ours["objective"] - want.objective).abs().max() <= 5e-5
    for name in PER_PATCH:
        assert spread(ours[name] - getattr(want, name)) < spread(getattr(unrounded, name) - getattr(want, name)), name
    near = 1 - torch.nn.functional.cosine_similarity(
        x.bfloat16().double()[0, :, None], p.bfloat16().double()[0], dim=-1
    )
    assert (ours["patch_score"][0, 0] >= near.amin(1) - 1e-6).all()


def test_joint_shares_lose_less_than_by_rounding_the_inputs(interpreted: Callable[..., Any]) -> None:
    x, p, group = points(2, 20, 64, seed=1), points(40, 64, seed=2), torch.arange(40) % 3
    options = (None, None, 3, 0.05, 12, 0.0, 0.1)
    got = interpreted("joint_sinkhorn", x.bfloat16(), p.bfloat16(), group, *options)
    want = exact("joint_sinkhorn", x.bfloat16(), p.bfloat16(), group, *options)
    unrounded = exact("joint_sinkhorn", x, p, group, *options)
    for i in range(2):
        assert spread(got[i] - want[i]) < spread(unrounded[i] - want[i])
    assert got[2].tolist() == want.iterations.tolist()


@pytest.mark.parametrize("M", [34, 70])
def test_a_k_that_underflows_is_solved_from_the_cosines_to_full_accuracy(
    interpreted: Callable[..., Any], M: int
) -> None:
    x, p = points(1, 9, 24, seed=1) + 2, points(1, M, 24, seed=2) + 2
    p[0, 1] *= -1  # cost about 1.9 for every patch: e^-380 at epsilon 0.005
    options = (None, None, 0.005, 12, 0.0, None)
    got = interpreted("sinkhorn", x.bfloat16(), p.bfloat16(), *options)
    want = exact("sinkhorn", x.bfloat16(), p.bfloat16(), *options)
    for name, ours, true in zip(want._fields, got, want, strict=True):
        close = {"rtol": 2e-6, "atol": 4e-4 if name == "marginal_error" else 4e-5}  # logarithms of 550: steps of 6e-5
        torch.testing.assert_close(ours.double(), true.double(), **close, msg=name)


def test_a_bad_item_is_nan_and_its_neighbors_are_untouched(interpreted: Callable[..., Any]) -> None:
    x, p = points(3, 9, 24, seed=1).bfloat16(), points(2, 36, 24, seed=2).bfloat16()
    options = (None, None, 0.05, 20, 1e-4, None)
    clean = interpreted("sinkhorn", x, p, *options)
    x[1, 3, 5] = torch.nan
    got = interpreted("sinkhorn", x, p, *options)
    for i, (ours, before) in enumerate(zip(got, clean, strict=True)):
        assert (ours[1] == 0).all() if i == 4 else ours[1].isnan().all()
        assert torch.equal(ours[[0, 2]], before[[0, 2]])
