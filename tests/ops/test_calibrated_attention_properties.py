"""What a rule means: identities between `ops.calibrated_attention` and other ways to the same attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guardcore import ops, reference

SEEDS = st.integers(0, 2**16)
few = settings(max_examples=25, deadline=None)
SHAPE = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.integers(1, 20))  # group, Q, K, D


def problem(seed: int, group: int, Q: int, K: int, D: int, *, items: int = 2) -> dict[str, Tensor]:
    """Two kv heads, scattered keys of class 1 and no rule."""
    g = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, items, 2, K, D, generator=g)
    return {
        "query": torch.randn(items, 2 * group, Q, D, generator=g),
        "key": key,
        "value": value,
        "key_class": torch.randint(2, (items, K), generator=g, dtype=torch.uint8),
        "rule": torch.zeros(2 * group, 2, 3),
    }


def additive(tensors: dict[str, Tensor], amount: Tensor | float) -> dict[str, Tensor]:
    """The same problem with an additive rule on class 1: a number, or one for each item and head [B, Hq]."""
    amount = torch.as_tensor(amount, dtype=torch.float32)
    rule = torch.zeros(*(amount.shape or tensors["rule"].shape[:1]), 2, 3)
    rule[..., 1, 2] = amount
    return tensors | {"rule": rule}


def split(tensors: dict[str, Tensor]) -> tuple[ops.AttentionOutput, ops.AttentionOutput]:
    """Attention to class 1 alone and to the rest alone."""
    own = tensors["key_class"] == 1
    return (
        ops.calibrated_attention(**tensors, key_mask=own),
        ops.calibrated_attention(**tensors, key_mask=~own),
    )


@few
@given(SEEDS, SHAPE, st.floats(1e-3, 1e3))
def test_additive_log_gain_reweights_the_softmax(seed, shape, gain):
    """PASTA: multiply the attention on the span by gain, then normalize the row."""
    tensors = problem(seed, *shape)
    query, key, value = (tensors[name].double() for name in ("query", "key", "value"))
    key, value = (tensor.repeat_interleave(shape[0], 1) for tensor in (key, value))
    share = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    share = torch.where((tensors["key_class"] == 1)[:, None, None], gain * share, share)
    expected = share / share.sum(-1, keepdim=True) @ value
    got = ops.calibrated_attention(**additive(tensors, math.log(gain)))
    torch.testing.assert_close(got.output.double(), expected, atol=5e-6, rtol=5e-6)


@few
@given(SEEDS, SHAPE, st.integers(2, 5))
def test_listing_keys_n_times_is_an_additive_rule_of_log_n(seed, shape, n):
    tensors = problem(seed, *shape, items=1)
    own = tensors["key_class"][0] == 1
    times = torch.where(own, n, 1)
    listed = {name: tensors[name].repeat_interleave(times, 2) for name in ("key", "value")}
    listed["key_class"] = tensors["key_class"].repeat_interleave(times, 1)
    expected = ops.calibrated_attention(**tensors | listed, return_mass=True)
    got = ops.calibrated_attention(**additive(tensors, math.log(n)), return_mass=True)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, atol=5e-6, rtol=5e-6)


@few
@given(SEEDS, SHAPE, st.floats(0.01, 0.99))
def test_the_gain_for_a_target_mass_hits_it(seed, shape, target):
    """gain = t (1 - m) / (m (1 - t)), exact for the one row of a decoding step."""
    group, _, K, D = shape
    tensors = problem(seed, group, 1, K + 1, D)
    tensors["key_class"][:, 0], tensors["key_class"][:, 1:2] = 1, 0
    mass = ops.calibrated_attention(**tensors, return_mass=True).mass[:, :, 0, 1]
    gain = target * (1 - mass) / (mass * (1 - target))
    got = ops.calibrated_attention(**additive(tensors, gain.log()), return_mass=True)
    rounding = 2.0**-22 / (1 - mass)  # all that float32 keeps of 1 - m as m nears 1
    assert bool(((got.mass[:, :, 0, 1] - target).abs() <= 1e-5 + rounding).all())


@few
@given(SEEDS, SHAPE, st.floats(0.0, 1.0))
def test_span_and_rest_merge_by_their_log_sum_exp(seed, shape, target):
    """The mass is what the two log-sum-exps say; any other share of the span is a blend of the two outputs."""
    tensors = problem(seed, *shape)
    span, rest = split(tensors)
    whole = ops.calibrated_attention(**tensors, return_mass=True)
    mass = (span.lse - torch.logaddexp(span.lse, rest.lse)).exp()
    torch.testing.assert_close(whole.mass[..., 1], mass, atol=2e-6, rtol=2e-5)
    blend = mass[..., None] * span.output + (1 - mass[..., None]) * rest.output
    torch.testing.assert_close(whole.output, blend, atol=5e-6, rtol=5e-6)


@few
@given(SEEDS, SHAPE, st.floats(-100.0, 100.0))
def test_masses_are_shares_and_grow_with_the_rule(seed, shape, amount):
    tensors = problem(seed, *shape)
    mass = ops.calibrated_attention(**additive(tensors, amount), return_mass=True).mass
    more = ops.calibrated_attention(**additive(tensors, amount + 1), return_mass=True).mass
    assert bool((mass >= 0).all())
    assert bool((mass <= 1 + 2e-6).all())
    torch.testing.assert_close(mass.sum(-1), torch.ones_like(mass[..., 0]), atol=2e-6, rtol=0.0)
    assert bool((more[..., 1] >= mass[..., 1] - 2e-5).all())


@few
@given(SEEDS, SHAPE)
def test_order_of_keys_does_not_matter_without_causality(seed, shape):
    tensors = problem(seed, *shape)
    order = torch.randperm(shape[2], generator=torch.Generator().manual_seed(seed))
    mixed = {name: tensors[name][:, :, order] for name in ("key", "value")}
    mixed["key_class"] = tensors["key_class"][:, order]
    tensors = additive(tensors, 1.5)
    got, expected = (ops.calibrated_attention(**t, return_mass=True) for t in (tensors | mixed, tensors))
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, atol=5e-6, rtol=5e-6)


@few
@given(SEEDS, SHAPE, st.floats(0.1, 3.0))
def test_rows_that_see_one_class_only_do_not_notice_an_additive_rule(seed, shape, amount):
    tensors = problem(seed, *shape)
    tensors["key_class"].fill_(1)
    plain = ops.calibrated_attention(**tensors)
    got = ops.calibrated_attention(**additive(tensors, amount))
    torch.testing.assert_close(got.output, plain.output, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(got.lse, plain.lse + amount, atol=5e-6, rtol=5e-6)


@few
@given(SEEDS, SHAPE, st.floats(0.05, 2.0))
def test_the_gated_rule_multiplies_positive_scores_only(seed, shape, gamma):
    """Attention with every score of the span s (1 + gamma [s > 0]): no negative score is pushed further down."""
    tensors = problem(seed, *shape)
    tensors["key_class"].fill_(1)
    tensors["rule"][:, 1, 0] = gamma
    query, key = tensors["query"].double(), tensors["key"].double().repeat_interleave(shape[0], 1)
    s = query @ key.mT / query.shape[-1] ** 0.5
    expected = torch.where(s > 0, s * (1 + gamma), s).logsumexp(-1)
    torch.testing.assert_close(ops.calibrated_attention(**tensors).lse.double(), expected, atol=5e-6, rtol=5e-6)


@few
@given(SEEDS, SHAPE, st.floats(0.01, 0.5))
def test_the_literal_rule_is_the_quadratic_one(seed, shape, gamma):
    """Equations 13 and 14: Z + gamma max(0, <q, k>) Z, Z = <q, k> / sqrt(D)."""
    tensors = problem(seed, *shape)
    tensors["key_class"].fill_(1)
    tensors["rule"][:, 1, 1] = gamma * shape[3] ** 0.5
    product = tensors["query"].double() @ tensors["key"].double().repeat_interleave(shape[0], 1).mT
    z = product / shape[3] ** 0.5
    expected = (z + gamma * product.clamp_min(0) * z).logsumexp(-1)
    torch.testing.assert_close(ops.calibrated_attention(**tensors).lse.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gain", [1e-3, 1e-6, 1e-12, 1e-30])
@pytest.mark.parametrize("lead", [0.0, 9.0, 20.0])
def test_suppression_does_not_cancel_where_the_span_had_all_the_attention(gain, lead):
    """The usual correction by log-sum-exp, o + (g - 1) m o_S, loses all digits as m nears 1."""
    tensors = problem(3, 2, 4, 50, 16)
    tensors["key"][tensors["key_class"].bool()[:, None].expand(-1, 2, -1)] *= 0.1
    query = torch.cat((tensors["query"], torch.ones(2, 4, 4, 1)), -1)
    key = torch.cat((tensors["key"], 4.0 * lead * tensors["key_class"][:, None, :, None].expand(-1, 2, -1, 1)), -1)
    value = torch.cat((tensors["value"], tensors["value"][..., :1]), -1)
    tensors = additive(tensors | {"query": query, "key": key, "value": value}, math.log(gain))
    got = ops.calibrated_attention(**tensors, scale=0.25, return_mass=True)
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    truth = reference.calibrated_attention(**exact, scale=0.25, return_mass=True)
    torch.testing.assert_close(got.output.double(), truth.output, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(got.mass[..., 1].double(), truth.mass[..., 1], atol=0.0, rtol=5e-5)
