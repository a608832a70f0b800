"""Compiled models: the same tokens, in one graph where the model itself allows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.calibrated_batch import calibrated_batch, distance
from guardcore.adapters.transformers.attachment import Attachment

TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def same(found: Any, expected: Any) -> bool:
    return torch.equal(found.sequences, expected.sequences) and bool((distance(found, expected) <= TOLERANCE).all())


def compiled(model: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    # "aot_eager" traces as "inductor" does and leaves out what takes a minute, making code.
    monkeypatch.setattr(model, "forward", torch.compile(model.forward, backend="aot_eager", **settings), raising=False)


def graph_count() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("llava", "dynamic"),
        pytest.param("llava", "static", marks=pytest.mark.slow),
        pytest.param("mllama", "dynamic", marks=pytest.mark.slow),
    ],
)
def test_one_graph(tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, name: str, cache: str) -> None:
    model = tiny(name)
    batch = calibrated_batch(model)
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
    expected = batch.expected(model.model, **settings)
    if cache == "static":
        settings["cache_implementation"] = "static"
    attachment = Attachment(model.model)
    compiled(model.model, monkeypatch, fullgraph=name == "llava")
    try:
        for turn in range(2):
            session = batch.session(attachment)
            with attachment.alone(), attachment.calibrated(session):
                assert same(batch.plain(model.model, **settings), expected)
            assert len(session.masses()[0]) == len(attachment.text.layers) - 2 * (name == "mllama")
            if turn == 0:
                graphs = graph_count()
        # Prefill, one step of decoding, and any; the second session needs none of its own.
        assert graph_count() == graphs
        assert name != "llava" or graphs <= 3
    finally:
        attachment.detach()


@pytest.mark.slow
def test_another_thread_does_not_meet_the_calibrated_graph(
    tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llava")
    batch = calibrated_batch(model)
    expected, plain = batch.expected(model.model), batch.plain(model.model)
    attachment, found = Attachment(model.model), []
    compiled(model.model, monkeypatch, fullgraph=True)
    try:
        with attachment.alone(), attachment.calibrated(batch.session(attachment)):
            assert same(batch.plain(model.model), expected)
            thread = threading.Thread(target=lambda: found.append(batch.plain(model.model)))
            thread.start()
            thread.join()
    finally:
        attachment.detach()
    assert same(found[0], plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paligemma", "qwen2_vl"])
def test_masks_with_blocks_break_the_graph_and_stay_right(
    tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = tiny(name)
    batch = calibrated_batch(model)
    settings = {"max_new_tokens": 3, "min_new_tokens": 3}
    expected = batch.expected(model.model, **settings)
    compiled(model.model, monkeypatch)
    assert same(batch.calibrated(model.model, **settings), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_transformers_own_compilation_of_decoding(tiny: Callable[[str], Any], name: str) -> None:
    """Masks are made outside of the graph, and copied on the way into it."""
    from transformers import CompileConfig

    model = tiny(name)
    batch = calibrated_batch(model)
    settings = CompileConfig(backend="aot_eager", mode=None)
    settings._compile_all_devices = True
    found = batch.calibrated(model.model, cache_implementation="static", compile_config=settings)
    assert same(found, batch.expected(model.model))
    vars(model.model).pop("_compiled_call", None)
