"""The cascade finds the hits that solving everything finds, and its bounds hold."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guardcore import ops, reference
from guardcore.reference.sinkhorn import unit_rows

STATISTICS = ("patch_score", "distance")
LEVELS = ("v3", "baseline")


def statistic_of(out: ops.SinkhornOutput | ops.ScreenOutput, statistic: str) -> Tensor:
    """What thresholds are compared with, [B, C]."""
    return out.patch_score.amin(-1) if statistic == "patch_score" else out.distance


def exact_bound(patches: Tensor, prototypes: Tensor, b: Tensor | None, statistic: str) -> Tensor:
    """The bound in float64 on the inputs as they are, [B, C]: nine digits beyond what rounding is allowed for."""
    unit = [unit_rows(rows.double()) for rows in (patches, prototypes)]
    nearest = (1 - torch.einsum("bnd,cmd->bcnm", *unit)).amin(2)
    b = torch.ones(prototypes.shape[:2]) if b is None else b
    if statistic == "patch_score":
        return nearest.masked_fill(b == 0, torch.inf).amin(-1)
    return (nearest * (b.double() / b.double().sum(-1, keepdim=True))).sum(-1)


def check(patches: Tensor, prototypes: Tensor, threshold: Tensor, a=None, b=None, statistic="patch_score", **options):
    """Everything that the operator promises of one call; returns its output."""
    full = ops.sinkhorn(patches, prototypes, a, b, **options)
    got = ops.sinkhorn_screen(patches, prototypes, threshold, a, b, statistic=statistic, **options)
    whole = statistic_of(full, statistic)
    bad = whole.isnan()
    assert torch.equal(~got.cleared & (statistic_of(got, statistic) <= threshold), whole <= threshold)
    assert torch.equal(got.cleared, got.bound > threshold)
    assert torch.equal(got.bound.isnan(), bad)
    assert not got.cleared[bad].any()
    for name in ops.SinkhornOutput._fields:
        of_all, of_open = getattr(full, name), getattr(got, name)
        torch.testing.assert_close(of_open[~got.cleared], of_all[~got.cleared], rtol=0, atol=0, equal_nan=True)
        left_out = of_open[got.cleared]
        assert (left_out == 0 if name == "iterations" else left_out.isnan()).all(), name
    if statistic == "patch_score" or options.get("relaxation") is None:
        sound = ~bad
        assert (got.bound[sound].double() <= exact_bound(patches, prototypes, b, statistic)[sound]).all()
        assert (got.bound[sound] <= whole[sound]).all()
    return got


def draw(seed: int, B: int = 4, C: int = 4) -> dict[str, object]:
    """A batch of random and awkward problems: what is awkward about it depends on the seed."""
    g = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    def flip(chance: float = 0.3) -> bool:
        return bool(torch.rand(1, generator=g) < chance)

    N, M, D = integer(1, 24), integer(1, 9), integer(1, 70)
    patches, prototypes = torch.randn(B, N, D, generator=g), torch.randn(C, M, D, generator=g)
    if flip():  # every category has prototypes near some patch
        prototypes = patches[torch.randint(B, (C, M), generator=g), torch.randint(N, (C, M), generator=g)]
        prototypes = prototypes + integer(0, 2) * 0.1 * torch.randn(C, M, D, generator=g)
    if flip():  # a common direction: costs lie close together, as with CLIP-like models
        patches, prototypes = patches + 4, prototypes + 4
    if flip():  # one coordinate far above the others leaves few codes for them
        patches[..., integer(0, D - 1)] *= 100
    if flip():  # duplicates
        patches[:, :: integer(1, 3)] = patches[:, :1].clone()
    if flip():
        patches[integer(0, B - 1), integer(0, N - 1)] = 0
        prototypes[integer(0, C - 1), integer(0, M - 1)] = 0
    patches *= 10.0 ** integer(-18, 18) if flip(0.1) else torch.rand(B, N, 1, generator=g) + 0.1
    if flip(0.15):
        patches[integer(0, B - 1), integer(0, N - 1), integer(0, D - 1)] = (torch.nan, torch.inf)[integer(0, 1)]
    a = torch.rand(B, N, generator=g) if flip() else None
    b = torch.rand(C, M, generator=g) * (torch.rand(C, M, generator=g) > 0.4) if flip() else None
    if a is not None and flip():
        a[:, integer(0, N - 1) :] = 0
    if a is not None and flip():
        a[integer(0, B - 1)] = 0  # an item without mass is NaN
    dtype = (torch.float32, torch.float32, torch.bfloat16, torch.float16)[integer(0, 3)]
    return {
        "patches": patches.to(dtype), "prototypes": prototypes.to(dtype), "a": a, "b": b,
        "epsilon": (1e-6, 1e-3, 0.02, 0.05, 0.3)[integer(0, 4)], "max_iterations": (1, 3, 30)[integer(0, 2)],
        "tolerance": (0.0, 1e-4)[integer(0, 1)], "relaxation": (None, None, 0.1, 0.0)[integer(0, 3)],
    }  # fmt: skip


def thresholds(problem: dict[str, object], statistic: str, seed: int) -> list[Tensor]:
    """Ties, bounds of either stage, their neighbors, and the ends: each [C], taken from a random item per category."""
    rest = {name: value for name, value in problem.items() if name not in ("patches", "prototypes", "a", "b")}
    points = [problem[name] for name in ("patches", "prototypes")]
    weights = [problem[name] for name in ("a", "b")]
    B, C = points[0].shape[0], points[1].shape[0]
    item = torch.randint(B, (C,), generator=torch.Generator().manual_seed(seed))
    chosen = [torch.full((C,), torch.inf), torch.full((C,), -torch.inf)]
    values = [statistic_of(ops.sinkhorn(*points, *weights, **rest), statistic)]
    values += [ops.sinkhorn_screen(*points, end, *weights, statistic=statistic, **rest).bound for end in chosen]
    for value in values:
        at = value[item, torch.arange(C)].nan_to_num(0.5)
        chosen += [at, at.nextafter(torch.tensor(torch.inf)), at.nextafter(torch.tensor(-torch.inf))]
    return chosen


def check_batch(seed: int, B: int = 4, C: int = 4) -> None:
    problem = draw(seed, B, C)
    for statistic in STATISTICS:
        for threshold in thresholds(problem, statistic, seed):
            check(threshold=threshold, statistic=statistic, **problem)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40))
def test_hits_and_results_are_those_of_solving_everything(seed):
    check_batch(seed)


@pytest.mark.slow
def test_a_hundred_thousand_problems():
    """400 batches of 256 pairs, each at eleven thresholds by either statistic."""
    for seed in range(400):
        check_batch(seed, B=16, C=16)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_other_instruction_sets(level):
    """Those without byte products start with the bound on the cost."""
    script = (
        f"import importlib.util as u; s = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(s)\n"
    )
    script += "s.loader.exec_module(t); [t.check_batch(seed, 8, 8) for seed in range(60)]"
    environment = os.environ | {"GUARDCORE_CPU_LEVEL": level}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=root)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bounds_hold_in_exact_arithmetic(data):
    """cos <= 1 - bound, with whole coordinates: <x, p> <= (1 - bound) |x| |p|, squared where the signs allow."""
    D = data.draw(st.integers(1, 40))
    row = st.lists(st.integers(-300, 300), min_size=D, max_size=D).filter(any)
    x, p = (data.draw(st.lists(row, min_size=1, max_size=3)) for _ in range(2))
    got = ops.sinkhorn_screen(torch.tensor([x]).float(), torch.tensor([p]).float(), torch.tensor([-torch.inf]))
    most = 1 - Fraction(got.bound.item())
    for a in x:
        for b in p:
            dot = sum(i * j for i, j in zip(a, b, strict=True))
            lengths = sum(i * i for i in a) * sum(j * j for j in b)
            if dot > 0:
                assert most > 0
                assert dot * dot <= most * most * lengths
            else:
                assert most >= 0 or dot * dot >= most * most * lengths


@pytest.mark.parametrize("statistic", STATISTICS)
def test_definition_agrees_and_is_tighter(statistic):
    """The definition's bounds allow for float64's rounding alone; what they clear is no hit for either."""
    for seed in range(40):
        problem = draw(seed)
        options = [problem[name] for name in ("epsilon", "max_iterations", "tolerance", "relaxation")]
        points = [problem[name].double() for name in ("patches", "prototypes")]
        threshold = torch.full((4,), 0.6)
        truth = reference.sinkhorn(*points, problem["a"], problem["b"], *options)
        arguments = (*points, threshold, problem["a"], problem["b"], statistic == "distance", *options)
        got = reference.sinkhorn_screen(*arguments)
        native = check(threshold=threshold, statistic=statistic, **problem)
        assert torch.equal(
            ~got.cleared & (statistic_of(got, statistic) <= threshold), statistic_of(truth, statistic) <= threshold
        )
        assert torch.equal(got.bound.isnan(), native.bound.isnan())
        sound = ~got.bound.isnan()
        assert (native.bound.double() <= got.bound)[sound].all()
        for name in ops.SinkhornOutput._fields:
            expected = getattr(truth, name)[~got.cleared]
            torch.testing.assert_close(getattr(got, name)[~got.cleared], expected, rtol=0, atol=0, equal_nan=True)


def test_bounds_are_close_enough_to_clear():
    """Closed form: orthogonal rows have cost 1. Codes are exact to a step here, and rounding is a few 1e-5."""
    patches, prototypes = torch.eye(8)[None, :4], torch.eye(8)[None, 4:]
    for statistic in STATISTICS:
        got = ops.sinkhorn_screen(patches, prototypes, torch.tensor([0.999]), statistic=statistic)
        assert got.cleared.all()
        assert got.iterations.item() == 0
        assert 0.9998 < got.bound.item() < 1
        open_pair = ops.sinkhorn_screen(patches, prototypes, torch.tensor([1.0]), statistic=statistic)
        assert not open_pair.cleared.any()
        assert open_pair.distance.item() == pytest.approx(1)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_bounds_are_tight(statistic):
    """A bound that holds because it is far too low would clear nothing. -inf asks for the first stage's alone."""
    g = torch.Generator().manual_seed(2)
    patches, prototypes = torch.randn(3, 100, 192, generator=g), torch.randn(9, 7, 192, generator=g)
    got = ops.sinkhorn_screen(patches, prototypes, torch.full((9,), -torch.inf), statistic=statistic)
    assert got.cleared.all()
    gap = exact_bound(patches, prototypes, None, statistic) - got.bound
    assert gap.min() >= 0
    assert gap.max() < 0.02  # codes; the float32 bound alone is within 1e-4


@pytest.mark.parametrize("batch", [1, 7])
def test_threads_do_not_change_a_bit(batch):
    g = torch.Generator().manual_seed(3)
    patches, prototypes = torch.randn(batch, 50, 40, generator=g), torch.randn(9, 7, 40, generator=g)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.sinkhorn_screen(patches, prototypes, torch.full((9,), 0.55)))
    finally:
        torch.set_num_threads(threads)
    assert results[0].cleared.any()
    assert not results[0].cleared.all()
    for other in results[1:]:
        for mine, its in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_packed_items_are_screened_like_single_ones(statistic):
    lengths = (5, 0, 1, 17, 40)
    g = torch.Generator().manual_seed(4)
    patches, prototypes = torch.randn(sum(lengths), 33, generator=g), torch.randn(5, 6, 33, generator=g)
    weights, b = torch.rand(sum(lengths), generator=g), torch.rand(5, 6, generator=g)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    threshold = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])
    got = ops.sinkhorn_screen_packed(patches, offsets, prototypes, threshold, weights, b, statistic=statistic)
    assert got.cleared.any()
    assert not got.cleared.all()
    for i, (first, last) in enumerate(itertools.pairwise(offsets)):
        one = ops.sinkhorn_screen(
            patches[None, first:last], prototypes, threshold, weights[None, first:last], b, statistic=statistic
        )
        for name, value in one._asdict().items():
            mine = getattr(got, name)
            mine = mine[:, first:last][None] if "patch" in name else mine[i : i + 1]
            torch.testing.assert_close(mine, value, rtol=0, atol=0, equal_nan=True)


def test_nothing_is_cleared_by_distance_with_a_relaxed_marginal():
    patches, prototypes = torch.eye(8)[None, :4], torch.eye(8)[None, 4:]
    got = ops.sinkhorn_screen(patches, prototypes, torch.tensor([-torch.inf]), statistic="distance", relaxation=0.1)
    assert not got.cleared.any()
    assert got.bound.item() == -torch.inf
    assert got.iterations.item() > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threshold": torch.zeros(3)}, ValueError, r"threshold must have shape \[2\], got \[3\]"),
        ({"threshold": torch.zeros(2, dtype=torch.float64)}, TypeError, "threshold must be float32"),
        ({"threshold": torch.tensor([0.0, torch.nan])}, ValueError, r"threshold must not be NaN, got NaN at \[1\]"),
        ({"statistic": "mean"}, ValueError, "statistic must be one of patch_score, distance, got 'mean'"),
        ({"epsilon": 0.0}, ValueError, "epsilon"),
        ({"patch_weights": -torch.ones(1, 3)}, ValueError, "patch_weights must be finite and >= 0"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"patches": torch.ones(1, 3, 4), "prototypes": torch.ones(2, 2, 4), "threshold": torch.zeros(2)}
    with pytest.raises(error, match=message):
        ops.sinkhorn_screen(**(arguments | change))


def test_no_gradient():
    out = ops.sinkhorn_screen(torch.ones(1, 3, 4, requires_grad=True), torch.ones(2, 2, 4), torch.ones(2))
    with pytest.raises(NotImplementedError, match="inference only"):
        out.distance.sum().backward()
