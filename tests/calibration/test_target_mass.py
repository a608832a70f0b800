"""A span's share of the attention is brought to a target exactly, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardcore import ops, reference

SPAN, G = 1, 5


def problem(B=2, Hq=4, Hkv=2, Q=7, K=23, D=16, span=(3, 9), seed=0, spread=1.0):
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(B, Hq, Q, D, generator=draw) * spread
    key, value = (torch.randn(B, Hkv, K, D, generator=draw) for _ in range(2))
    key_class = torch.zeros(B, K, dtype=torch.uint8)
    key_class[:, slice(*span)] = SPAN
    return query, key, value, key_class, torch.zeros(Hq, G, 3)


def truth(query, key, value, key_class, rule, target, row_mask=None, **options):
    """By its gain in float64: t (1 - m) / (m (1 - t)) on the softmax under the rule, one row at a time."""
    (B, Hq, Q, _), K = query.shape, key.shape[2]
    rule = rule if rule.dim() == 4 else rule.unsqueeze(0)
    output = torch.zeros(query.shape, dtype=torch.float64)
    lse, share = torch.full((B, Hq, Q), -math.inf, dtype=torch.float64), torch.zeros(B, Hq, Q, dtype=torch.float64)
    one_hot = torch.eye(K, dtype=torch.float64).expand(B, 1, K, K)  # values that show each key's weight
    doubles = (query.double(), key.double(), one_hot.expand(B, key.shape[1], K, K), key_class, rule.double())
    wide = torch.zeros(B, Hq, Q, K, dtype=torch.float64)
    for k in range(0, K, query.shape[-1]):  # the definition wants values as wide as the query
        chunk = doubles[2][..., k : k + query.shape[-1]]
        padded = torch.nn.functional.pad(chunk, (0, query.shape[-1] - chunk.shape[-1]))
        found = reference.calibrated_attention(*doubles[:2], padded, *doubles[3:], row_mask, **options)
        wide[..., k : k + query.shape[-1]] = found.output[..., : chunk.shape[-1]]
        plain = found.lse
    heads = value.repeat_interleave(Hq // value.shape[1], dim=1).double()
    for b in range(B):
        inside = key_class[b] == SPAN
        for h in range(Hq):
            t = float(target.expand(B, Hq)[b, h])
            for i in range(Q):
                weights = wide[b, h, i]
                m, rest = float(weights[inside].sum()), float(weights[~inside].sum())
                raised = (row_mask is None or row_mask[b, i]) and 0 < m < t
                gain = t * rest / (m * (1 - t)) if raised else 1.0
                new = torch.where(inside, gain, 1.0) * weights
                total = float(new.sum())
                lse[b, h, i] = plain[b, h, i] + (math.log(total) if total > 0 else 0)
                new = new / total if total > 0 else new
                output[b, h, i], share[b, h, i] = new @ heads[b, h], new[inside].sum()
    return output, lse, share


def check(problem, target, row_mask=None, tolerance=3e-6, **options):
    out = ops.target_mass_attention(*problem, target, row_mask, return_mass=True, **options)
    output, lse, share = truth(*problem, target, row_mask, **options)
    assert (out.output.double() - output).abs().max() <= tolerance * max(1.0, float(output.abs().max()))
    finite = lse > -math.inf
    assert torch.equal(out.lse > -math.inf, finite)
    assert ((out.lse.double() - lse)[finite].abs() <= 3e-6 * (1 + lse[finite].abs())).all()
    assert (out.mass[..., SPAN].double() - share).abs().max() <= tolerance
    sums = out.mass.sum(-1)
    assert ((sums - finite.float()).abs() <= 3e-6).all()
    return out, share


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"is_causal": True, "window": 11}, {"softcap": 2.0}])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])  # one, two, six query heads a key head
def test_matches_the_gain_in_float64(options, heads):
    Hq, Hkv = heads
    given = problem(Hq=Hq, Hkv=Hkv)
    target = torch.linspace(0, 0.9, 2 * Hq).reshape(2, Hq)
    check(given, target, **options)


def test_the_share_is_the_target_wherever_it_was_lower():
    given = problem(spread=2.0)
    before = ops.calibrated_attention(*given, return_mass=True).mass[..., SPAN]
    for t in (1e-4, 0.3, 0.7, 0.999):
        out = ops.target_mass_attention(*given, torch.full((1, 4), t), return_mass=True)
        assert torch.allclose(out.mass[..., SPAN], before.clamp(min=t), atol=1e-6)


@pytest.mark.parametrize("shift", [-30.0, -80.0, 30.0, 80.0])  # shares of about e^-30, below float32, and their mirrors
def test_shares_near_nought_and_one_do_not_cancel(shift):
    query, key, value, key_class, rule = problem(span=(3, 5))
    query[..., 0], key[..., 0] = 1.0, 0.0
    key[:, :, 3:5, 0] = shift * math.sqrt(query.shape[-1])
    # float32 rounds a score of 80 by up to 4e-6, and weights by as much
    out, share = check((query, key, value, key_class, rule), torch.full((1, 4), 0.25), tolerance=3e-5)
    if shift < 0:
        assert torch.equal(out.mass[..., SPAN], torch.full_like(out.mass[..., SPAN], 0.25))
    else:
        assert float(share.min()) > 1 - 1e-9


def test_rows_without_span_keys_or_with_nothing_else_stay_as_they_are():
    given = problem(Q=23, span=(0, 6))  # causal: rows 0 to 5 see the span only
    out, _ = check(given, torch.full((1, 4), 0.6), is_causal=True)
    plain = ops.calibrated_attention(*given, is_causal=True)
    assert torch.allclose(out.output[:, :, :6], plain.output[:, :, :6], atol=1e-6)
    assert torch.equal(out.mass[:, :, :6, SPAN], torch.ones(2, 4, 6))
    given = problem(Q=23, span=(12, 18))  # rows 0 to 11 see none of it
    out, _ = check(given, torch.full((1, 4), 0.6), is_causal=True)
    plain = ops.calibrated_attention(*given, is_causal=True)
    assert torch.equal(out.output[:, :, :12], plain.output[:, :, :12])
    assert torch.equal(out.mass[:, :, :12, SPAN], torch.zeros(2, 4, 12))


def test_no_span_at_all_is_plain_attention():
    given = problem(span=(0, 0))
    out = ops.target_mass_attention(*given, torch.full((1, 4), 0.6), is_causal=True)
    assert torch.equal(out.output, ops.calibrated_attention(*given, is_causal=True).output)


def test_uncalibrated_rows_and_heads_without_a_target_are_plain_attention():
    given = problem(Q=9)
    rows = torch.zeros(2, 9, dtype=torch.bool)
    rows[0, 4:] = True
    target = torch.tensor([[0.5, 0.0, 0.9, 0.0]])
    out, _ = check(given, target, rows)
    plain = ops.calibrated_attention(*given)
    assert torch.allclose(out.output[1], plain.output[1], atol=2e-6)
    assert torch.allclose(out.output[:, 1], plain.output[:, 1], atol=2e-6)
    assert (out.output[0, 0, 4:] - plain.output[0, 0, 4:]).abs().max() > 1e-2


def test_padding_is_never_seen_whatever_it_holds():
    query, key, value, key_class, rule = problem()
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[1, :5] = False  # left padding over the first two keys of the span
    key[1, :, :5], value[1, :, :5] = math.nan, math.inf
    out = ops.target_mass_attention(
        query, key, value, key_class, rule, torch.full((1, 4), 0.4), None, mask, is_causal=True, return_mass=True
    )
    short = ops.target_mass_attention(
        query[1:], key[1:, :, 5:], value[1:, :, 5:], key_class[1:, 5:], rule, torch.full((1, 4), 0.4), is_causal=True,
        return_mass=True,
    )  # fmt: skip
    assert torch.allclose(out.output[1:], short.output, atol=1e-6)
    assert torch.allclose(out.mass[1:], short.mass, atol=1e-6)


def test_rows_that_see_nothing_are_empty():
    query, key, value, key_class, rule = problem()
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[0] = False
    out = ops.target_mass_attention(
        query, key, value, key_class, rule, torch.full((1, 4), 0.4), None, mask, return_mass=True
    )
    assert not out.output[0].any()
    assert not out.mass[0].any()
    assert (out.lse[0] == -math.inf).all()


def test_other_rules_act_first():
    """A target on the prefix, a gate on the image: the target is met under the gate."""
    query, key, value, key_class, rule = problem()
    key_class[:, 12:18] = 3
    rule[:, 3, 0] = -0.5
    check((query, key, value, key_class, rule), torch.full((1, 4), 0.5), is_causal=True)


def test_groups_and_static_caches():
    """Bidirectional image blocks reach over causality; rows stand at a given slot of a longer cache."""
    query, key, value, key_class, rule = problem(Q=6)
    groups, start = torch.zeros(2, 23, dtype=torch.int64), torch.tensor([4, 9])
    groups[:, 6:14] = 1
    options = {"key_group": groups, "query_start": start, "is_causal": True}
    target = torch.full((1, 4), 0.5)
    given = (query, key, value, key_class, rule)
    check(given, target, **options)
    options.pop("key_group")
    check(given, target, **options)


def test_half_precision_keeps_its_dtype_and_layout():
    given = problem()
    half = [tensor.bfloat16() for tensor in given[:3]]
    out = ops.target_mass_attention(*half, *given[3:], torch.full((1, 4), 0.5))
    exact, _, _ = truth(*(tensor.float() for tensor in half), *given[3:], torch.full((1, 4), 0.5))
    assert out.output.dtype == torch.bfloat16
    assert out.output.transpose(1, 2).is_contiguous()
    assert (out.output.double() - exact).abs().max() < 2e-2


def test_compiles_into_one_graph():
    given, target = problem(), torch.full((1, 4), 0.5)

    def attend(query, key, value):
        return ops.target_mass_attention(query, key, value, *given[3:], target, is_causal=True, return_mass=True)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(*given[:3])
    for found, expected in zip(compiled, attend(*given[:3]), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 30),
    st.floats(0, 0.999),
    st.floats(0.1, 6),
)
def test_any_problem_meets_its_target(seed, Q, K, t, spread):
    draw = torch.Generator().manual_seed(seed)
    query, key, value, key_class, rule = problem(B=1, Q=Q, K=K, seed=seed, spread=spread)
    key_class = torch.randint(0, 2, (1, K), generator=draw, dtype=torch.uint8)  # scattered
    # float32 scores of this spread are off by a few 1e-6, and weights by as much
    check((query, key, value, key_class, rule), torch.full((1, 4), t), tolerance=2e-5, is_causal=True)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (torch.full((1, 4), 1.0), ValueError, r"target must be in \[0, 1\)"),
        (torch.full((1, 4), -0.1), ValueError, r"target must be in \[0, 1\)"),
        (torch.full((1, 4), math.nan), ValueError, r"target must be in \[0, 1\)"),
        (torch.full((4,), 0.1), ValueError, r"target must have shape \[1, 4\] or \[2, 4\], got \[4\]"),
        (torch.full((1, 4), 0.1, dtype=torch.float64), TypeError, "target must be float32"),
    ],
)
def test_bad_targets_are_named(target, error, words):
    with pytest.raises(error, match=words):
        ops.target_mass_attention(*problem(), target)


def test_bad_classes_are_named():
    with pytest.raises(ValueError, match="span_class must be 1 to 4, got 0"):
        ops.target_mass_attention(*problem(), torch.full((1, 4), 0.1), span_class=0)
