"""Attaching changes nothing but calibrated generations, and leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from typing import Any

import pytest
import torch

from bench.calibrated_batch import calibrated_batch
from guardcore.adapters.transformers.attachment import Attachment
from guardcore.adapters.transformers.support import UnsupportedError
from guardcore.calibration.attention_calibration import AttentionCalibration


@pytest.fixture(params=["llava", "gemma3", pytest.param("paligemma", marks=pytest.mark.slow), "mllama"])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Any]) -> Any:
    return tiny(request.param)


@pytest.fixture
def attachment(model: Any) -> Iterator[Attachment]:
    own = Attachment(model.model)
    yield own
    own.detach()


def implementations(model: Any) -> list[Any]:
    """Of the model's configuration and of each of its parts."""
    parts = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    return [part._attn_implementation for part in parts]


def registered() -> set[str]:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return {*ALL_ATTENTION_FUNCTIONS, *ALL_MASK_ATTENTION_FUNCTIONS}


def same_bits(left: Any, right: Any) -> bool:
    steps = zip(left.logits, right.logits, strict=True)
    return torch.equal(left.sequences, right.sequences) and all(torch.equal(*step) for step in steps)


def test_an_attached_model_gives_the_same_bits_without_a_calibration(model: Any) -> None:
    batch = calibrated_batch(model)
    with torch.no_grad():
        before = batch.plain(model.model), model.model(**batch.inputs, output_hidden_states=True)
    attachment = Attachment(model.model)
    try:
        with torch.no_grad():
            after = batch.plain(model.model), model.model(**batch.inputs, output_hidden_states=True)
    finally:
        attachment.detach()
    assert same_bits(before[0], after[0])
    assert all(map(torch.equal, before[1].hidden_states, after[1].hidden_states))


def test_layers_without_a_rule_give_the_same_bits_within_a_calibrated_generation(
    model: Any, attachment: Attachment
) -> None:
    """The last layer is calibrated: what goes into it is the plain model's, bit for bit, and what comes out is not."""
    batch = calibrated_batch(model)
    calibration = AttentionCalibration(rules={"prefix": "log_gain:9"}, layers=(5,))
    session = attachment.session(batch.spans, batch.padding, [calibration] * 3, device=model.model.device)
    with torch.no_grad():
        plain = model.model(**batch.inputs, output_hidden_states=True)
        with attachment.alone(), attachment.calibrated(session):
            found = model.model(**batch.inputs, output_hidden_states=True)
    # The last hidden state comes after the last layer and the closing norm.
    assert all(map(torch.equal, plain.hidden_states[:-1], found.hidden_states[:-1]))
    assert not torch.equal(plain.logits, found.logits)


def test_only_the_text_side_is_exchanged_and_detaching_restores_everything(model: Any) -> None:
    before, names = implementations(model.model), registered()
    attachment = Attachment(model.model)
    assert attachment.name in registered()
    assert [after for after in implementations(model.model) if after == attachment.name] == [attachment.name]
    attachment.detach()
    attachment.detach()
    assert implementations(model.model) == before
    assert registered() == names


def test_a_second_attachment_is_refused(model: Any, attachment: Attachment) -> None:
    with pytest.raises(RuntimeError, match="attached already"):
        Attachment(model.model)
    assert model.model.config.get_text_config()._attn_implementation == attachment.name


def test_a_failing_generation_leaves_the_model_plain(model: Any, attachment: Attachment) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("from within")

    batch = calibrated_batch(model)
    plain = batch.plain(model.model)
    with (
        pytest.raises(KeyError, match="from within"),
        attachment.alone(),
        attachment.calibrated(batch.session(attachment)),
    ):
        batch.plain(model.model, prefix_allowed_tokens_fn=fail)
    assert same_bits(batch.plain(model.model), plain)
    with attachment.alone(), attachment.calibrated(batch.session(attachment)):
        assert not torch.equal(batch.plain(model.model).logits[0], plain.logits[0])


def test_another_threads_plain_call_is_not_calibrated_and_does_not_disturb(tiny: Callable[[str], Any]) -> None:
    """It runs in the middle of every step of the calibrated generation, on other inputs."""
    model = tiny("llava")
    batch, other = calibrated_batch(model), calibrated_batch(model, requests=2)
    plain, expected = other.plain(model.model), batch.calibrated(model.model)
    found: list[Any] = []

    def meanwhile(*_: Any) -> list[int]:
        thread = threading.Thread(target=lambda: found.append(other.plain(model.model)))
        thread.start()
        thread.join()
        return list(range(model.model.config.text_config.vocab_size))

    again = batch.calibrated(model.model, prefix_allowed_tokens_fn=meanwhile)
    assert len(found) >= 6
    assert all(same_bits(each, plain) for each in found)
    assert torch.equal(again.sequences, expected.sequences)


def test_threads_take_turns(tiny: Callable[[str], Any]) -> None:
    model = tiny("llava")
    batches = [calibrated_batch(model, requests) for requests in (1, 2, 3)]
    expected = [batch.calibrated(model.model).sequences for batch in batches]
    attachment, found, inside = Attachment(model.model), {}, []

    def run(index: int) -> None:
        session = batches[index].session(attachment)
        with attachment.alone(), attachment.calibrated(session):
            inside.append(index)
            found[index] = batches[index].plain(model.model).sequences
            assert inside[-1] == index

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    attachment.detach()
    assert all(torch.equal(found[index], expected[index]) for index in range(3))


def test_a_generation_within_a_generation_and_detaching_there_are_refused(tiny: Callable[[str], Any]) -> None:
    attachment = Attachment(tiny("llava").model)
    with attachment.alone():
        with pytest.raises(RuntimeError, match="can't start another one inside"), attachment.alone():
            pass
        with pytest.raises(RuntimeError, match="can't detach the model inside"):
            attachment.detach()
    attachment.detach()
    with pytest.raises(RuntimeError, match="was detached"), attachment.alone():
        pass


def test_another_sequence_within_a_calibrated_generation_is_refused(tiny: Callable[[str], Any]) -> None:
    """Guidance runs a second prompt through the model, whose slots mean something else."""
    model = tiny("llava")
    batch = calibrated_batch(model)
    batch.plain(model.model, guidance_scale=2.0)
    with pytest.raises(UnsupportedError, match="guidance by a second prompt"):
        batch.calibrated(model.model, guidance_scale=2.0)


def test_an_implementation_exchanged_by_somebody_else_is_refused(tiny: Callable[[str], Any]) -> None:
    """Before a generation, and within one; plain generations go on."""
    model = tiny("llava")
    batch, attachment = calibrated_batch(model, requests=1), Attachment(model.model)
    own = attachment._own

    def exchange(*_: Any) -> list[int]:
        model.model.set_attn_implementation(own)
        return list(range(model.model.config.text_config.vocab_size))

    try:
        for settings in ({"prefix_allowed_tokens_fn": exchange}, {}):
            with (
                pytest.raises(RuntimeError, match=f"exchanged for '{own}' while a defense is attached"),
                attachment.alone(),
                attachment.calibrated(batch.session(attachment)),
            ):
                batch.plain(model.model, **settings)
        with attachment.alone(), attachment.calibrated(None):
            batch.plain(model.model)
    finally:
        attachment.detach()
    assert model.model.config.text_config._attn_implementation == own


def test_a_generation_in_which_no_layer_asks_for_its_rule_is_refused(tiny: Callable[[str], Any]) -> None:
    """As of a model whose layers go by another configuration than the one that was exchanged."""
    model = tiny("llava")
    batch, attachment = calibrated_batch(model, requests=1), Attachment(model.model)
    layers = attachment.text.layers.values()
    config, other = attachment.text.config, copy(attachment.text.config)
    other._attn_implementation = attachment._own
    try:
        for layer in layers:
            layer.config = other
        with (
            pytest.raises(UnsupportedError, match=r"none of the layers \[0, 1, 2, 3, 4, 5\] asked for its rule"),
            attachment.alone(),
            attachment.calibrated(batch.session(attachment)),
        ):
            batch.plain(model.model)
    finally:
        for layer in layers:
            layer.config = config
        attachment.detach()


def test_a_copy_of_an_attached_model_is_told_the_way_back(tiny: Callable[[str], Any]) -> None:
    model = tiny("llava").model
    attachment = Attachment(model)
    try:
        copied = deepcopy(model)
        with pytest.raises(RuntimeError, match=r"plain again after set_attn_implementation\('sdpa'\)"):
            Attachment(copied)
    finally:
        attachment.detach()
    copied.set_attn_implementation("sdpa")
    Attachment(copied).detach()


def test_masks_that_the_caller_brings_along_are_refused(tiny: Callable[[str], Any]) -> None:
    model = tiny("llava")
    batch = calibrated_batch(model, requests=1)
    attachment = Attachment(model.model)
    inputs = dict(batch.inputs)
    length = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    try:
        with (
            torch.no_grad(),
            pytest.raises(UnsupportedError, match="was made by transformers' masking"),
            attachment.alone(),
            attachment.calibrated(batch.session(attachment)),
        ):
            model.model(**inputs)
    finally:
        attachment.detach()
