"""Copies the openly licensed sample photographs of scikit-image and scikit-learn as small JPEGs.

    python -m bench.builtin.build_photographs --output bench/art/photographs

`train/` serves as backgrounds while training, `held_out/` only in evaluation. ATTRIBUTION.md there names the licenses.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

from PIL import Image

SIDE = 320
SKIMAGE, SKLEARN = "skimage.data", "sklearn.datasets.images"
# Only pictures whose documentation states the public domain, CC0, no known restrictions or (scikit-learn) CC BY 2.0.
SPLITS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        (SKLEARN, "china.jpg"),
        (SKIMAGE, "astronaut.png"),
        (SKIMAGE, "brick.png"),
        (SKIMAGE, "chelsea.png"),
        (SKIMAGE, "coins.png"),
        (SKIMAGE, "gravel.png"),
        (SKIMAGE, "hubble_deep_field.jpg"),
        (SKIMAGE, "ihc.png"),
        (SKIMAGE, "retina.jpg"),
    ),
    "held_out": (
        (SKLEARN, "flower.jpg"),
        (SKIMAGE, "camera.png"),
        (SKIMAGE, "coffee.png"),
        (SKIMAGE, "grass.png"),
        (SKIMAGE, "rocket.jpg"),
    ),
}


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    for split, sources in SPLITS.items():
        (output / split).mkdir(parents=True, exist_ok=True)
        for package, name in sources:
            with resources.files(package).joinpath(name).open("rb") as stream:
                picture = Image.open(stream).convert("RGB")
            picture.thumbnail((SIDE * 2, SIDE))
            picture.save(output / split / f"{Path(name).stem}.jpg", quality=85)


if __name__ == "__main__":
    main()
