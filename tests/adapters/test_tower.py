"""One pass of a model's own tower for screening and generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench.tiny_models import build
from bench.tiny_models.encoder import tower_encoder
from guardcore.adapters.transformers.prompt import encode
from guardcore.adapters.transformers.tower import SharedTower, share
from guardcore.defenses.protocol import Request
from guardcore.detector.detector import Detector
from guardcore.encoders.vlm import TowerEncoder, TowerHead, find_tower
from guardcore.patches import PatchMode, PatchSet
from guardcore.policy.policy import Policy

# Thresholds that let some of the patches through and stop some: statistics of random features lie in between.
POLICY = {
    "name": "tiny",
    "templates": ["{}"],
    "neutral": ["house", "garden", "tree"],
    "target_fpr": 0.05,
    "categories": [
        {"name": "knife", "nouns": ["knife", "harmful knife"], "action": "block", "threshold": 0.5},
        {"name": "dog", "nouns": ["dog"], "action": "review", "threshold": 0.3},
    ],
}
SETTINGS = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=["llava", "gemma3", "paligemma"])
def model(request: pytest.FixtureRequest) -> Any:
    """CLIP with its crop and class token; SigLIP pooled by fours; SigLIP as it is. Not shared: tests change weights."""
    return build(request.param)


@pytest.fixture(scope="module")
def detector(model: Any) -> Detector:
    return Detector(tower_encoder(model), Policy.from_data(POLICY), batch_size=3)


@pytest.fixture
def tower(model: Any, detector: Detector) -> SharedTower:
    return SharedTower(model.model, model.processor, detector.encoder)


@pytest.fixture
def images(picture: Callable[..., Image.Image]) -> list[Image.Image]:
    """More than a batch of the detector's; wide, tall, tiny, and as large as the tile."""
    sizes = [(60, 40), (40, 60), (7, 9), (48, 48), (40, 40)]
    return [picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]


@contextmanager
def passes(model: Any) -> Iterator[list[int]]:
    """Pictures of each pass through the tower's first block."""
    seen: list[int] = []
    (block,) = [part for name, part in find_tower(model.model).named_modules() if name.endswith("layers.0")]
    handle = block.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


def inputs_of(model: Any, images: list[Image.Image]) -> Any:
    return encode(model.processor, [Request("What is in this picture?", (image,)) for image in images]).inputs


def test_verdicts_are_those_of_the_tower_on_the_processors_pixels(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]
) -> None:
    pixels = model.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    embedding = TowerEncoder(model.model, detector.encoder).embed_images(pixels)
    found = tower.screen(detector, images)
    sets = [
        PatchSet(patches, vector[None], torch.zeros(len(patches), 4, dtype=torch.int64) + 1, image.size)
        for patches, vector, image in zip(embedding.patches, embedding.image, images, strict=True)
    ]
    for verdict, expected in zip(found, detector.screen_patches(sets), strict=True):
        assert verdict.statistics == pytest.approx(expected.statistics, abs=1e-5)
        assert (verdict.flagged, verdict.action, verdict.found) == (expected.flagged, expected.action, expected.found)
        assert verdict.fingerprint == expected.fingerprint
    assert any(verdict.flagged for verdict in found)


def test_a_picture_of_the_tiles_size_is_judged_as_by_the_detector_itself(
    model: Any, detector: Detector, tower: SharedTower, picture: Callable[..., Image.Image]
) -> None:
    side = detector.encoder.image_size
    image = picture(side, side, 9)
    (found,), expected = tower.screen(detector, [image]), detector.screen(image)
    assert found.statistics == pytest.approx(expected.statistics, abs=1e-5)
    assert [region.rectangles for region in found.regions] == [region.rectangles for region in expected.regions]


def test_the_tower_runs_once_for_screening_and_generation(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]
) -> None:
    order = [3, 0, 4, 2, 1, 0]  # not as screened, and one picture twice
    inputs = inputs_of(model, [images[index] for index in order])
    plain = model.model.generate(**inputs, **SETTINGS)
    with passes(model) as seen:
        tower.screen(detector, images)
        assert seen == [3, 2]
        with tower.memo():
            shared = model.model.generate(**inputs, **SETTINGS)
        assert seen == [3, 2]
        model.model.generate(**inputs, **SETTINGS)
        assert seen == [3, 2, 6]
    assert torch.equal(shared, plain)


def test_only_pictures_that_changed_are_seen_again(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]
) -> None:
    redacted = images[1].copy()
    redacted.paste((0, 0, 0), (0, 20, 30, 40))
    inputs = inputs_of(model, [images[0], redacted, images[2]])
    plain = model.model.generate(**inputs, **SETTINGS)
    with passes(model) as seen:
        tower.screen(detector, images[:3])
        with tower.memo():
            shared = model.model.generate(**inputs, **SETTINGS)
    assert seen == [3, 1]
    assert torch.equal(shared, plain)


@torch.no_grad()
def test_features_are_bit_for_bit_what_the_tower_said(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]
) -> None:
    own, pixels = find_tower(model.model), inputs_of(model, images[:3])["pixel_values"]
    tower.screen(detector, images[:3])
    plain = own(pixel_values=pixels, output_hidden_states=True)
    with tower.memo():
        found = own(pixels, output_hidden_states=-2 if model.name == "llava" else None)
    assert torch.equal(found.last_hidden_state, plain.last_hidden_state)
    assert (found.pooler_output is None) == (plain.pooler_output is None)
    if model.name == "llava":
        assert len(found.hidden_states) == len(plain.hidden_states)
        assert torch.equal(found.hidden_states[-2], plain.hidden_states[-2])
        assert torch.equal(found.pooler_output, plain.pooler_output)


@torch.no_grad()
def test_nothing_stale_is_served(model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]) -> None:
    own, pixels = find_tower(model.model), inputs_of(model, images[:2])["pixel_values"]
    weight = next(own.parameters())

    def runs(**changes: Any) -> int:
        with passes(model) as seen, tower.memo():
            own(**{"pixel_values": pixels, **changes})
        return len(seen)

    tower.screen(detector, images[:2])
    assert runs() == 0
    assert runs(pixel_values=pixels + 1e-3) == 1
    assert runs(pixel_values=torch.full_like(pixels, torch.nan)) == 1
    assert runs(output_attentions=True) == 1
    assert runs(output_hidden_states=[0, 1]) == 1  # not kept
    with torch.enable_grad():
        assert runs() == 1
    own.train()
    assert runs() == 1
    own.eval()
    tower.forget()
    assert runs() == 1
    for change in (lambda: weight.add_(0.0), lambda: own.load_state_dict(own.state_dict())):
        tower = SharedTower(model.model, model.processor, detector.encoder)
        tower.screen(detector, images[:2])
        assert runs() == 0
        change()
        assert runs() == 1


def test_a_tower_whose_weights_changed_is_no_longer_the_banks(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]
) -> None:
    assert tower.why_not(detector) is None
    with torch.no_grad():
        next(find_tower(model.model).parameters()).mul_(1.0)
    assert "weights were changed or moved since they were compared" in str(tower.why_not(detector))
    with passes(model) as seen:
        found = tower.screen(detector, images)
    assert not seen  # the detector's encoder has a tower of its own
    assert [verdict.to_json() for verdict in found] == [verdict.to_json() for verdict in detector.screen(images)]
    assert share(model.model, model.processor, detector)[0] is not None


def test_forward_comes_back_exactly(model: Any, detector: Detector, tower: SharedTower, images: Any) -> None:
    own: Any = find_tower(model.model)
    tower.screen(detector, images)
    assert "forward" not in own.__dict__
    with pytest.raises(KeyError, match="gone, True"), tower.memo():
        raise KeyError(f"gone, {'forward' in own.__dict__}")
    assert "forward" not in own.__dict__
    hooked = own.forward = lambda *args, **kwargs: type(own).forward(own, *args, **kwargs)  # as accelerate does
    try:
        tower.screen(detector, images)
        with tower.memo():
            assert own.forward is not hooked
        assert own.forward is hooked
    finally:
        del own.forward


def test_half_precision_shares_as_well(picture: Callable[..., Image.Image]) -> None:
    model = build("llava")
    model.model.to(torch.bfloat16)
    detector = Detector(tower_encoder(model), Policy.from_data(POLICY))
    tower = SharedTower(model.model, model.processor, detector.encoder)
    images = [picture(50, 40), picture(40, 44, 1)]
    inputs = inputs_of(model, images)
    with passes(model) as seen:
        tower.screen(detector, images)
        with tower.memo():
            shared = model.model.generate(**inputs, **SETTINGS)
            model.model.generate(**inputs.to("cpu", torch.bfloat16), **SETTINGS)  # the host may cast them itself
    assert seen == [2]
    assert torch.equal(shared, model.model.generate(**inputs, **SETTINGS))


def test_a_saved_head_and_a_tower_encoder_share_too(
    model: Any, detector: Detector, images: list[Image.Image], tmp_path: Path
) -> None:
    TowerHead.from_encoder(detector.encoder).save(tmp_path / "head.safetensors")
    head = TowerHead.load(tmp_path / "head.safetensors")
    own = TowerEncoder(model.model, detector.encoder)
    expected = SharedTower(model.model, model.processor, detector.encoder).screen(detector, images)
    for encoder in (head, own):
        found = SharedTower(model.model, model.processor, encoder).screen(detector, images)
        assert [verdict.to_json() for verdict in found] == [verdict.to_json() for verdict in expected]
    other = build(model.name)
    with pytest.raises(ValueError, match="model: its tower is not the module that tower of"):
        SharedTower(other.model, other.processor, own)


def test_what_is_no_picture_spoils_no_other(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image], tmp_path: Path
) -> None:
    images[0].save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    torn, empty = Image.open(tmp_path / "torn.png"), Image.new("RGB", (0, 5))
    line = Image.new("L", (1, 5000))  # the detector tiles it, a processor would make gigabytes of it
    gray = images[3].convert("L")
    found = tower.screen(detector, [images[0], OSError("gone"), torn, empty, None, gray, images[1], line])
    assert [verdict.error and verdict.error.kind for verdict in found] == [None, *["unreadable"] * 4, None, None, None]
    assert "gone" in found[1].error.message
    expected = tower.screen(detector, [images[0], gray, images[1]])
    for verdict, other in zip([found[0], *found[5:7]], expected, strict=True):
        assert verdict.statistics == pytest.approx(other.statistics, abs=1e-5)
    assert found[7].to_json() == detector.screen(line).to_json()
    assert tower.screen(detector, []) == []


def test_regions_lie_where_the_model_looks(
    model: Any, detector: Detector, tower: SharedTower, picture: Callable[..., Image.Image]
) -> None:
    wide = picture(90, 45, 3)
    strict = [{**category, "threshold": 2.0} for category in POLICY["categories"]]  # flags every patch
    everything = Detector(detector.encoder, Policy.from_data({**POLICY, "categories": strict}))
    (verdict,) = tower.screen(everything, [wide])
    left, right = (22, 68) if model.name == "llava" else (0, 90)  # CLIP crops the square in the middle
    (region,) = verdict.regions
    assert region.box == (left, 0, right, 45)
    assert region.mask.shape == (45, 90)
    redacted = verdict.redact(wide, style="zero")
    assert not any(redacted.crop(region.box).tobytes())
    verdict.overlay(wide)  # knows patches that cover a part of the picture only


def test_reasons_why_not(model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]) -> None:
    assert share(model.model, model.processor, detector)[1] == f"tower of encoder of {model.name}"
    other = Detector(tower_encoder(model, seed=1), Policy.from_data(POLICY))
    assert "the detector's encoder is encoder of" in str(tower.why_not(other))
    grid = Detector(detector.encoder, Policy.from_data(POLICY), patches=PatchMode.parse("grid:2"))
    assert tower.why_not(grid) == "the detector's patches are grid:2, and the tower has tokens"
    for judge in (other, grid):  # by its own encoder, then
        found, expected = tower.screen(judge, images), judge.screen(images)
        assert [verdict.to_json() for verdict in found] == [verdict.to_json() for verdict in expected]
    assert share(model.model, model.processor, grid) == (None, tower.why_not(grid))


def test_what_can_not_be_shared_is_said(tiny: Callable[[str], Any], detector: Detector, model: Any) -> None:
    for name, reason in {
        "llava_next": "LlavaNextImageProcessor is not known to make one square tile",
        "qwen2_vl": "Qwen2VLImageProcessor is not known to make one square tile",
        "mllama": "MllamaImageProcessor is not known to make one square tile",
    }.items():
        found, why = share(tiny(name).model, tiny(name).processor, detector)
        assert found is None
        assert reason in why
    stranger = build(model.name, seed=1)
    found, why = share(stranger.model, stranger.processor, detector)
    assert found is None
    assert "its vision tower is not that of" in why
    stranger.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert "normalizes pixels otherwise" in share(stranger.model, stranger.processor, detector)[1]


def test_an_encoder_of_another_kind_is_no_tower(tiny: Callable[[str], Any]) -> None:
    class Colors:
        name = "colors"

    class Stub:
        encoder = Colors()

    found, why = share(tiny("llava").model, tiny("llava").processor, Stub())  # type: ignore[arg-type]
    assert found is None
    assert why == "the detector's encoder colors is no CLIP or SigLIP that a model could share"


def test_pictures_are_not_prepared_twice(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image]
) -> None:
    images = [*images, images[0].convert("P"), images[1].convert("RGBA"), images[2].convert("L")]
    requests = [Request("What is this?", (image,)) for image in images]
    requests.append(Request("Compare.", (images[1], images[0])))
    expected = encode(model.processor, requests)
    tower.screen(detector, images)
    found = encode(model.processor, requests, tiles=tower.tile)
    assert found.spans == expected.spans
    assert found.inputs.keys() == expected.inputs.keys()
    for name in expected.inputs:
        assert torch.equal(found.inputs[name], expected.inputs[name])
    before = tower.tile(images[0])
    images[0].putpixel((5, 5), (1, 2, 3))  # in place: another picture now
    assert before is not None
    assert tower.tile(images[0]) is None
    changed = encode(model.processor, requests[:1], tiles=tower.tile).inputs["pixel_values"]
    assert torch.equal(changed, encode(model.processor, requests[:1]).inputs["pixel_values"])
    tower.forget()
    assert tower.tile(images[1]) is None


def test_pictures_with_equal_bytes_and_other_colors_are_told_apart(
    model: Any, detector: Detector, tower: SharedTower, picture: Callable[..., Image.Image]
) -> None:
    image = picture(50, 50).convert("P")
    other = image.copy()
    other.putpalette([255 - value for value in image.getpalette()])
    assert other.tobytes() == image.tobytes()
    tower.screen(detector, [image])
    assert tower.tile(image) is not None
    assert tower.tile(other) is None


def test_only_so_many_pictures_are_remembered(
    model: Any, detector: Detector, tower: SharedTower, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [verdict.to_json() for verdict in tower.screen(detector, images)]
    monkeypatch.setattr("guardcore.adapters.transformers.tower._MOST", 4)  # of batches of 3 and 2
    assert [verdict.to_json() for verdict in tower.screen(detector, images)] == expected
    assert [tower.tile(image) is not None for image in images] == [True, True, True, False, False]
    with passes(model) as seen, tower.memo():
        model.model.generate(**inputs_of(model, images), **SETTINGS)
    assert seen == [2]
