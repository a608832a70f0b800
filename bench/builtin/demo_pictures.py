"""Draws the example pictures: scenes at 512 pixels, and a few openly licensed photographs.

    python -m bench.builtin.build_art --packages ART/node_modules --output large --cell 224 --styles noto twemoji
    python -m bench.builtin.demo_pictures --art large --output examples/pictures

`--art` wants sprites larger than the repository's, which would be blurred at this size.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from bench.builtin.build_photographs import SKIMAGE, SKLEARN
from bench.builtin.data import load_photographs
from guardcore.evaluation.scenes import Art, SceneGenerator, SceneOptions, load_art

SIDE, SEED = 512, 7
PHOTOGRAPHS = (
    (SKLEARN, "flower.jpg"),
    (SKLEARN, "china.jpg"),
    (SKIMAGE, "chelsea.png"),
    (SKIMAGE, "coffee.png"),
    (SKIMAGE, "rocket.jpg"),
)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, default=Path("bench/art/photographs/held_out"))
    parser.add_argument("--output", type=Path, default=Path("examples/pictures"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    art, photographs = load_art(arguments.art), load_photographs(arguments.photographs)
    for i, category in enumerate(art.categories):
        image = _draw(art, photographs, 100 + i, category)
        image.save(arguments.output / f"scene_{category}.jpg", quality=88)
    for i in range(5):
        _draw(art, photographs, i, None).save(arguments.output / f"scene_benign_{i + 1}.jpg", quality=88)
    for package, name in PHOTOGRAPHS:
        with resources.files(package).joinpath(name).open("rb") as stream:
            picture = Image.open(stream).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        picture.save(arguments.output / f"photo_{Path(name).stem}.jpg", quality=85)


def _draw(art: Art, photographs: list[Image.Image], index: int, category: str | None) -> Image.Image:
    """One scene; with a category, exactly one of its concepts is in it, large enough for a demonstration."""
    kind: Literal["benign", "unsafe"] = "benign" if category is None else "unsafe"
    weights = np.array([c.category in (None, category) for c in art.concepts], float)
    options = SceneOptions(size=SIDE, objects=(3, 5), scale=(0.25, 0.42), photographs=0.6)
    generator = SceneGenerator(art, art.styles, photographs, SEED, options, weights)
    return Image.fromarray(generator.scene(index, kind).image)


if __name__ == "__main__":
    main()
