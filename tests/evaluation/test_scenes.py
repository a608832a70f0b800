"""Generated scenes: the same seed gives the same picture, and the ground truth fits what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from guardcore.evaluation.scenes import Art, Scene, SceneGenerator, SceneOptions, load_art

ART_FOLDER = Path(__file__).resolve().parents[2] / "bench" / "art"
CELL, NAMES = 32, ("red square", "blue disk", "green square", "black knife")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny art folder: four concepts, the last one unsafe, the second style without the disk."""
    path = tmp_path_factory.mktemp("art")
    for style, skip in (("flat", None), ("thin", 1)):
        atlas = Image.new("RGBA", (2 * CELL, 2 * CELL))
        draw = ImageDraw.Draw(atlas)
        for i, color in enumerate(("red", "blue", "green", "black")):
            x, y = i % 2 * CELL, i // 2 * CELL
            if i != skip:
                (draw.ellipse if i == 1 else draw.rectangle)((x + 6, y + 6, x + 25, y + 25), color)
        atlas.save(path / f"{style}.webp", lossless=True)
    rows = [
        {
            "name": name,
            "keywords": ["shape"],
            "category": "weapons" if i == 3 else None,
            "lookalike": False,
            "codepoint": f"1f60{i}",
            "group": "Objects",
            "styles": ["flat"] if i == 1 else ["flat", "thin"],
        }
        for i, name in enumerate(NAMES)
    ]
    table = {"cell": CELL, "columns": 2, "styles": ["flat", "thin"], "held_out": ["thin"], "concepts": rows}
    (path / "concepts.json").write_text(json.dumps(table), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def art(folder: Path) -> Art:
    return load_art(folder)


def draw(art: Art, index: int = 0, **options: object) -> Scene:
    kind = options.pop("kind", "any")
    seed = options.pop("seed", 0)
    return SceneGenerator(art, art.styles, (), seed, SceneOptions(**{"objects": (1, 2), **options})).scene(index, kind)


def test_sprites_are_cropped_to_what_is_drawn(art: Art) -> None:
    sprite = art.sprites["flat"][0]
    assert sprite is not None
    assert sprite.size == (20, 20)
    assert art.sprites["thin"][1] is None
    assert art.categories == ("weapons",)


def test_a_missing_atlas_and_a_wrong_size_are_errors(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "concepts.json").write_text((folder / "concepts.json").read_text())
    with pytest.raises(FileNotFoundError):
        load_art(tmp_path)
    for style in ("flat", "thin"):
        Image.new("RGBA", (8, 8)).save(tmp_path / f"{style}.webp")
    with pytest.raises(ValueError, match="expected 64 x 64 pixels"):
        load_art(tmp_path)


def test_an_unknown_style_is_an_error(art: Art) -> None:
    with pytest.raises(ValueError, match="styles"):
        SceneGenerator(art, ("watercolor",))


def test_a_scene_depends_on_seed_and_index_alone(art: Art) -> None:
    first, again = draw(art, 7, augment=0.8, degrade=0.8), draw(art, 7, augment=0.8, degrade=0.8)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert not np.array_equal(first.image, draw(art, 8, augment=0.8, degrade=0.8).image)
    assert not np.array_equal(first.image, draw(art, 7, seed=1, augment=0.8, degrade=0.8).image)


@pytest.mark.parametrize("size", [128, 96, 384])
def test_owner_and_boxes_fit_the_picture(art: Art, size: int) -> None:
    for index in range(10):
        scene = draw(art, index, size=size, augment=0.7, degrade=0.5)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.owner.dtype == np.int16
        assert scene.owner.max() < len(scene.objects)
        for i, thing in enumerate(scene.objects):
            left, top, right, bottom = thing.box
            rows, columns = np.nonzero(scene.owner == i)
            assert 0 <= left < right <= size
            assert 0 <= top < bottom <= size
            assert len(rows) == 0 or (rows.min() >= top and rows.max() < bottom and columns.min() >= left)
            assert 0 <= thing.visible <= 1


def test_owner_marks_the_drawn_pixels(art: Art) -> None:
    scene = draw(art, 3, rotation=0.0, objects=(1, 1), scale=(0.4, 0.4), size=200)
    thing = scene.objects[0]
    color = {0: (255, 0, 0), 1: (0, 0, 255), 2: (0, 128, 0), 3: (0, 0, 0)}[thing.concept]
    inside = scene.image[scene.owner == 0].astype(int)
    assert np.median(np.abs(inside - color).max(1)) < 12


def test_kinds_keep_to_their_word(art: Art) -> None:
    def unsafe(scene: Scene) -> int:
        return sum(art.concepts[o.concept].category is not None for o in scene.objects)

    assert all(unsafe(draw(art, i, kind="benign")) == 0 for i in range(30))
    assert all(unsafe(draw(art, i, kind="unsafe")) == 1 for i in range(30))


def test_objects_stay_visible(art: Art) -> None:
    crowded = [draw(art, i, objects=(3, 3), scale=(0.3, 0.5), visible=v) for v in (0.0, 0.6) for i in range(40)]
    least = [min(o.visible for o in scene.objects) for scene in crowded]
    assert min(least[:40]) < 0.6
    assert min(least[40:]) >= 0.6


def test_weights_of_zero_are_never_drawn(art: Art) -> None:
    generator = SceneGenerator(art, art.styles, (), 0, SceneOptions(objects=(1, 1)), np.array([0.0, 1.0, 0.0, 0.0]))
    assert {o.concept for i in range(20) for o in generator.scene(i).objects} == {1}


def test_photographs_serve_as_backgrounds(art: Art) -> None:
    photograph = Image.new("RGB", (300, 200), (10, 200, 30))
    generator = SceneGenerator(art, ("flat",), (photograph,), 0, SceneOptions(photographs=1.0))
    scene = generator.scene(0)
    background = scene.image[scene.owner < 0]
    assert (background[:, 1] > background[:, 0]).mean() > 0.9


@pytest.mark.skipif(not ART_FOLDER.exists(), reason="the art is part of the repository, not of the package")
def test_the_committed_art_is_complete() -> None:
    table = json.loads((ART_FOLDER / "concepts.json").read_text(encoding="utf-8"))
    art = load_art(ART_FOLDER)
    assert len(art.concepts) >= 300
    assert len({c.name for c in art.concepts}) == len(art.concepts)
    assert set(table["held_out"]) < set(art.styles)
    for style in table["held_out"]:
        assert all(sprite is not None for sprite in art.sprites[style])
    unsafe = [c for c in art.concepts if c.category]
    assert 25 <= len(unsafe) <= 40
    assert not any(c.lookalike for c in unsafe)
