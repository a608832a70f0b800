"""Renders the sprite atlases and the concept table from the npm icon packages.

npm install --prefix ART @iconify-json/noto ... (the list is in README.md)
python -m bench.builtin.build_art --packages ART/node_modules --output bench/art
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image, ImageFilter

COLUMNS = 20
# Which emoji (by slug) are concepts, which of them count as unsafe, words that the emoji lists lack, icon names that
# differ from the slug (null where a set draws something else under the name), and the sets whose pistol is a revolver.
SELECTION: dict[str, Any] = json.loads(Path(__file__).with_name("selection.json").read_text("utf-8"))
CATEGORY: dict[str, str] = {slug: category for category, slugs in SELECTION["unsafe"].items() for slug in slugs}
SLUGS: tuple[str, ...] = tuple(dict.fromkeys([*CATEGORY, *SELECTION["lookalikes"], *SELECTION["plain"]]))


@dataclass(frozen=True)
class Style:
    """One art style: the icon set it comes from and whether a stroke is drawn around every shape.

    stroke: width as a share of the icon's side, 0 for the art as published. Stroked copies imitate inked drawings, the
    family of styles that the held-out set belongs to, without showing any of its drawings.
    """

    source: str
    stroke: float = 0.0


STYLES: dict[str, Style] = {
    "noto": Style("noto"),
    "noto-v1": Style("noto-v1"),
    "twemoji": Style("twemoji"),
    "fluent": Style("fluent-emoji"),
    "fluent-flat": Style("fluent-emoji-flat"),
    "fluent-contrast": Style("fluent-emoji-high-contrast"),
    "emojione": Style("emojione"),
    "fxemoji": Style("fxemoji"),
    "streamline": Style("streamline-emojis"),
    "fluent-3d": Style("3d"),
    "noto-inked": Style("noto", 0.02),
    "twemoji-inked": Style("twemoji", 0.028),
    "fluent-flat-inked": Style("fluent-emoji-flat", 0.028),
    "emojione-inked": Style("emojione", 0.022),
    "fxemoji-inked": Style("fxemoji", 0.024),
    "openmoji": Style("openmoji"),
}
HELD_OUT = ("openmoji",)


def _squeezed(name: str) -> str:
    return re.sub(r"-\d+$", "", name).replace("-", "")


def _icons(packages: Path, source: str) -> tuple[dict[str, str], float]:
    """Icon bodies by squeezed name (no hyphens, no trailing number), and the side of the view box."""
    data: dict[str, Any] = json.loads((packages / "@iconify-json" / source / "icons.json").read_text("utf-8"))
    bodies: dict[str, str] = {}
    for name, icon in data["icons"].items():
        bodies.setdefault(_squeezed(name), icon["body"])
    return bodies, float(data.get("height", 16))


def _render(body: str, side: float, stroke: float, pixels: int) -> Image.Image:
    if stroke:
        width = stroke * side
        body = f'<g stroke="#111" stroke-width="{width:.3f}" stroke-linejoin="round">{body}</g>'
    margin = stroke * side / 2
    view = f"{-margin} {-margin} {side + 2 * margin} {side + 2 * margin}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} viewBox="{view}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels * 2, height=pixels * 2)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((pixels, pixels), Image.Resampling.LANCZOS)


def _atlas(task: tuple[str, Path, Path, int, dict[str, str]]) -> tuple[str, list[bool]]:
    """Draws one style's atlas; returns which concepts it holds."""
    name, packages, output, cell, codepoints = task
    style = STYLES[name]
    rows = -(-len(SLUGS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * cell, rows * cell))
    has = []
    bodies, side = ({}, 0.0) if style.source == "3d" else _icons(packages, style.source)
    for i, slug in enumerate(SLUGS):
        if style.source == "3d":
            sprite = _three_dimensional(packages, codepoints.get(slug, "none"), cell)
        else:
            body = bodies.get(_squeezed(_icon_name(style.source, slug) or ""))
            sprite = _render(body, side, style.stroke, cell) if body else None
            if sprite is not None and name == "fluent-contrast":
                sprite = _halo(sprite)
        has.append(sprite is not None)
        if sprite is not None:
            atlas.paste(sprite, (i % COLUMNS * cell, i // COLUMNS * cell))
    atlas.save(output / f"{name}.webp", quality=82, method=6, alpha_quality=80)
    return name, has


def _halo(sprite: Image.Image) -> Image.Image:
    """A white rim, like a sticker's: black line art would vanish on dark backgrounds."""
    rim = Image.new("RGBA", sprite.size, (255, 255, 255, 0))
    rim.putalpha(sprite.getchannel("A").filter(ImageFilter.MaxFilter(5)))
    return Image.alpha_composite(rim, sprite)


def _icon_name(source: str, slug: str) -> str | None:
    """The set's name for a concept. A revolver is a concept of its own; elsewhere the pistol is a water gun."""
    if slug == "handgun":
        return "pistol" if source in SELECTION["revolvers"] else None
    name: str | None = SELECTION["renamed"].get(source, {}).get(slug, slug)
    return name


def _three_dimensional(packages: Path, codepoint: str, cell: int) -> Image.Image | None:
    path = packages / "@lobehub" / "fluent-emoji-3d" / "assets" / f"{codepoint}.webp"
    if not path.exists():
        path = path.with_name(f"{codepoint}-fe0f.webp")
    if not path.exists():
        return None
    return Image.open(path).convert("RGBA").resize((cell, cell), Image.Resampling.LANCZOS)


def _names(packages: Path) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    """Per slug: name, codepoint and group; and per codepoint the keywords of two word lists."""
    table = json.loads((packages / "unicode-emoji-json" / "data-by-emoji.json").read_text("utf-8"))
    words = json.loads((packages / "emojilib" / "dist" / "emoji-en-US.json").read_text("utf-8"))
    base = json.loads((packages / "emojibase-data" / "en" / "compact.json").read_text("utf-8"))
    tags = {row["hexcode"].lower().replace("-fe0f", ""): row.get("tags", []) for row in base}
    names, keywords = {}, {}
    for emoji, row in table.items():
        code = "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")
        slug = row["slug"].replace("_", "-")
        names[slug] = {"name": row["name"].lower(), "codepoint": code, "group": row["group"]}
        keywords[code] = _words([*words.get(emoji, []), *tags.get(code.lstrip("0"), [])])
    return names, keywords


def _words(phrases: Iterable[str]) -> list[str]:
    """Single lower-case words of the phrases, in order, each once."""
    found: dict[str, None] = {}
    for phrase in phrases:
        for word in re.findall(r"[a-z]{3,}", phrase.lower().replace("_", " ")):
            found.setdefault(word)
    return list(found)


def _rows(names: Mapping[str, dict[str, str]], keywords: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    rows = []
    for slug in SLUGS:
        entry = names.get(slug, {"name": slug.replace("-", " "), "codepoint": "1f52b", "group": "Objects"})
        extra = [] if slug == "handgun" else keywords.get(entry["codepoint"], [])
        if slug == "water-pistol":
            extra = [w for w in extra if w not in {"gun", "weapon", "revolver", "handgun", "violence", "pistol"}]
        rows.append(
            {
                "name": entry["name"].replace("’", ""),
                "keywords": list(dict.fromkeys([*SELECTION["synonyms"].get(slug, ()), *extra]))[:16],
                "category": CATEGORY.get(slug),
                "lookalike": slug in SELECTION["lookalikes"],
                "codepoint": entry["codepoint"],
                "group": entry["group"],
                "styles": [],
            }
        )
    return rows


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="node_modules folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cell", type=int, default=64, help="pixels a sprite; 64 is what the repository holds")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    names, keywords = _names(arguments.packages)
    rows = _rows(names, keywords)
    codepoints = {slug: row["codepoint"] for slug, row in zip(SLUGS, rows, strict=True) if slug != "handgun"}
    tasks = [(name, arguments.packages, arguments.output, arguments.cell, codepoints) for name in arguments.styles]
    with ProcessPoolExecutor(2) as pool:
        for name, has in pool.map(_atlas, tasks):
            print(name, sum(has), [s for s, h in zip(SLUGS, has, strict=True) if not h][:60])
            for row, there in zip(rows, has, strict=True):
                if there:
                    row["styles"].append(name)
    table = {
        "cell": arguments.cell,
        "columns": COLUMNS,
        "styles": arguments.styles,
        "held_out": [s for s in HELD_OUT if s in arguments.styles],
        "concepts": rows,
    }
    (arguments.output / "concepts.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
