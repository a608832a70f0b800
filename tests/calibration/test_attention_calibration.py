"""The calibration as data: layers, heads, files, fingerprints, fitting."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.mass import LayerMass
from guardcore.calibration.score_rule import ScoreRule
from guardcore.calibration.spans import TokenClass

FULL = AttentionCalibration(
    rules={"prefix": "target_mass:0.3", "image": "gated:-0.1", "unsafe": "log_gain:0", "instruction": "literal:0.01"},
    layers=(2, 5, 3),
    heads={3: (1, 0), 5: (2,)},
    rows="instruction",
)


def test_the_default_is_the_middle_band():
    default = AttentionCalibration()
    assert default.layer_indices(32) == (9, 10, 11, 12, 13, 14)
    assert default.rules == {"prefix": ScoreRule("gated", 0.15)}
    assert default.heads is None
    assert default.rows == "instruction+generated"
    assert default.classes == {TokenClass.PREFIX}


@pytest.mark.parametrize(
    ("band", "depth", "layers"),
    [
        ((0.0, 1.0), 4, (0, 1, 2, 3)),
        ((0.1, 0.3), 10, (1, 2)),  # both ends on a layer: the first is in, the last is not
        ((0.28, 0.45), 4, (1,)),  # no l / 4 lies in it: the layer of its middle
        ((0.28, 0.45), 1, (0,)),
        ((0.99, 1.0), 8, (7,)),
    ],
)
def test_bands_follow_the_depth_and_are_never_empty(band, depth, layers):
    assert AttentionCalibration(layers=band).layer_indices(depth) == layers


@given(st.integers(1, 200), st.floats(0, 0.99), st.floats(0.001, 1))
def test_a_band_gives_layers_of_the_model(depth, start, width):
    found = AttentionCalibration(layers=(start, min(1.0, start + width))).layer_indices(depth)
    assert found
    assert 0 <= found[0] <= found[-1] < depth


def test_whole_numbers_are_layers():
    assert AttentionCalibration(layers=(0, 1)).layer_indices(32) == (0, 1)
    assert AttentionCalibration(layers=(7, 3, 3)).layer_indices(8) == (3, 7)
    with pytest.raises(ValueError, match="layers: expected below the model's 7 layers; got 7"):
        AttentionCalibration(layers=(7, 3)).layer_indices(7)


def test_layers_without_heads_are_not_calibrated():
    assert FULL.layer_indices(8) == (3, 5)
    with pytest.raises(ValueError, match=r"heads: expected layers among \[9, 10, 11, 12, 13, 14\]; got 8"):
        AttentionCalibration(heads={8: (0,)}).layer_indices(32)


@pytest.mark.parametrize(
    "calibration", [AttentionCalibration(), FULL, AttentionCalibration(layers=(0.0, 1.0), rules={})]
)
def test_files_round_trip(calibration, tmp_path):
    calibration.save(tmp_path / "c.json")
    again = AttentionCalibration.load(tmp_path / "c.json")
    assert again == calibration
    assert again.fingerprint == calibration.fingerprint
    assert hash(again) == hash(calibration)
    assert pickle.loads(pickle.dumps(calibration)) == calibration
    assert json.loads(json.dumps(calibration.to_dict())) == calibration.to_dict()


def test_fingerprints_change_with_every_field():
    changed = [
        AttentionCalibration(),
        FULL,
        replace(FULL, rules={**FULL.rules, "prefix": ScoreRule("target_mass", 0.31)}),
        replace(FULL, rules={**FULL.rules, "prefix": ScoreRule("gated", 0.3)}),
        replace(FULL, rules={"prefix": ScoreRule("target_mass", 0.3)}),
        replace(FULL, layers=(2, 3, 4, 5)),
        replace(FULL, layers=(0.0, 1.0)),
        replace(FULL, layers=(0, 1), heads=None),
        replace(FULL, heads={3: (1,), 5: (2,)}),
        replace(FULL, heads=None),
        replace(FULL, rows="instruction+generated"),
    ]
    assert len({each.fingerprint for each in changed}) == len(changed)


def test_fingerprints_do_not_depend_on_order_or_spelling():
    other = AttentionCalibration(
        rules={
            "unsafe": "log_gain:0.0",
            "instruction": "literal:0.01",
            "image": "gated:-0.1",
            "prefix": "target_mass:0.3",
        },
        layers=[5, 3, 2],
        heads={5: [2], 3: [0, 1]},
        rows="instruction",
    )
    assert other == FULL
    assert other.fingerprint == FULL.fingerprint


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"rules": {"system": "gated:0.1"}},
            "rules: expected spans among prefix, instruction, image, unsafe; got 'system'",
        ),
        ({"rules": {"prefix": 0.15}}, "rules: expected a ScoreRule for prefix; got float"),
        ({"rules": {"image": "target_mass:0.5"}}, "rules: target_mass is for the prefix only; got it for image"),
        ({"rules": ["gated:1"]}, "rules: expected a mapping"),
        ({"layers": (0.5, 0.2)}, r"layers: expected a band 0 <= start < end <= 1; got \[0.5, 0.2\]"),
        ({"layers": (0.5, float("nan"))}, "layers: expected a band"),
        ({"layers": (0.1, 0.2, 0.3)}, "layers: expected a band"),
        ({"layers": ()}, "layers: expected at least one layer number"),
        ({"layers": (-1, 3)}, "layers: expected at least one layer number, none negative"),
        ({"layers": "9-14"}, "layers: expected a band of depth or layer numbers; got '9-14'"),
        ({"layers": ("9",)}, "layers: expected numbers"),
        ({"layers": 9}, "layers: expected a band of depth or layer numbers; got 9"),
        ({"layers": b"\t"}, "layers: expected a band of depth or layer numbers; got b"),
        ({"heads": {}}, "heads: expected heads by layer, or None for all"),
        ({"heads": {9: ()}}, "heads: expected a layer and its heads"),
        ({"heads": {9: (-1,)}}, "heads: expected a layer and its heads"),
        ({"heads": {9: 5}}, "heads: expected a layer and its heads, numbers >= 0; got 9: 5"),
        ({"heads": {9: (None,)}}, "heads: expected a layer and its heads"),
        ({"heads": {"9": (1,)}}, "heads: expected a layer and its heads"),
        ({"rows": "all"}, "rows: expected 'instruction' or"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        AttentionCalibration(**fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        ("[]", "expected a mapping of fields; got list"),
        ('{"gamma": 1}', "expected the fields rules, layers, heads, rows; got 'gamma'"),
        ('{"heads": {"x": [1]}}', "heads: expected layer numbers; got 'x'"),
        ('{"heads": {"3": [1], "03": [2]}}', "heads: expected layer numbers; got '03'"),
        ('{"heads": [1, 2]}', r"heads: expected heads by layer, or None for all; got \[1, 2\]"),
        ('{"heads": "x"}', "heads: expected heads by layer, or None for all; got 'x'"),
        ('{"heads": {"3": 5}}', "heads: expected a layer and its heads, numbers >= 0; got 3: 5"),
        ('{"heads": {"3": "01"}}', "heads: expected a layer and its heads"),
        ('{"rules": [1]}', "rules: expected a mapping of spans to rules; got list"),
        ('{"rules": {"prefix": null}}', "rules: expected a ScoreRule for prefix; got NoneType"),
        ('{"layers": null}', "layers: expected a band"),
        ('{"rows": ["instruction"]}', "rows: expected 'instruction' or"),
        ("[" * 100_000, "recursion"),
        ('{"rules": {"prefix": "gated"}}', "rule: expected KIND:STRENGTH"),
    ],
)
def test_bad_files_are_named(text, words, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"calibration.json: .*{words}"):
        AttentionCalibration.load(path)


def test_whole_numbers_name_layers_too():
    made = AttentionCalibration.from_dict({"layers": [3], "heads": {3: [0]}})
    assert made.heads == {3: (0,)}
    with pytest.raises(ValueError, match="heads: expected layer numbers; got -3"):
        AttentionCalibration.from_dict({"heads": {-3: [0]}})


def masses(*changes):
    """One request: layers 9 and 11 of three heads that start at 0.1."""
    pairs = zip((9, 11), (changes[:3], changes[3:]), strict=True)
    return [LayerMass(layer, (0.1,) * 3, tuple(0.1 + change for change in own)) for layer, own in pairs]


def test_fit_keeps_the_heads_that_change_most_on_average():
    requests = [masses(0.2, 0.2, 0.01, 0.3, 0.0, 0.05), masses(0.2, 0.2, 0.01, 0.0, 0.0, 0.05)]
    fitted = AttentionCalibration().fit(requests, heads=3)  # means 0.2, 0.2, 0.01, 0.15, 0, 0.05
    assert fitted.heads == {9: (0, 1), 11: (0,)}
    assert fitted.layers == (9, 11)
    assert fitted.layer_indices(32) == (9, 11)
    assert fitted.rules == AttentionCalibration().rules
    assert AttentionCalibration().fit(requests, heads=4).heads == {9: (0, 1), 11: (0, 2)}
    assert AttentionCalibration().fit(requests, heads=1).heads == {9: (0,)}
    assert AttentionCalibration().fit(requests, heads=1).layers == (9,)


def test_fit_counts_what_a_rule_takes_away_too():
    assert AttentionCalibration().fit([masses(0.01, -0.09, 0.05, 0, 0, 0)], heads=1).heads == {9: (1,)}


def test_fit_refuses_by_name():
    one = masses(0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="heads: expected 1 to the 6 pairs of layer and head; got 7"):
        AttentionCalibration().fit([one], heads=7)
    with pytest.raises(ValueError, match="got 0"):
        AttentionCalibration().fit([one], heads=0)
    with pytest.raises(ValueError, match=r"pairs of layer and head; got 2\.0"):
        AttentionCalibration().fit([one], heads=2.0)
    odd = masses(0, 0, 0, 0, float("nan"), 0)
    with pytest.raises(ValueError, match=r"masses: expected finite ones; request 1, layer 11: .*, head 1 has none"):
        AttentionCalibration().fit([one, odd], heads=1)
    with pytest.raises(TypeError, match="masses: expected for each request a sequence of LayerMass"):
        AttentionCalibration().fit(one, heads=1)
    for bad in ([], [[]], [one, one[:1]]):
        with pytest.raises(ValueError, match="masses: expected requests with the same layers and heads"):
            AttentionCalibration().fit(bad, heads=1)


def test_masses_print_themselves_and_refuse_unequal_heads():
    assert str(LayerMass(9, (0.1, 0.3), (0.2, 0.6))) == "layer 9: 0.2000 -> 0.4000"
    odd = LayerMass(9, (0.1,), (float("nan"),)).to_dict()
    assert odd == {"layer": 9, "before": [0.1], "after": [None]}
    for before, after in (((0.1,), ()), ((), ())):
        with pytest.raises(ValueError, match="after: expected"):
            LayerMass(9, before, after)
