"""The built-in encoder: its contract on a random network, and its semantics on the weights that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from guardcore.encoders.builtin import BuiltinEncoder, Vocabulary, header_of, load_builtin, read_encoder
from guardcore.encoders.builtin_network import BuiltinConfig, BuiltinNetwork
from guardcore.encoders.protocol import Encoder
from guardcore.evaluation.scenes import Art, SceneGenerator, SceneOptions, load_art

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "guardcore" / "data" / "builtin.safetensors"
WORDS = ("a", "cat", "dagger", "glass", "photo", "wine")


@pytest.fixture(scope="module")
def small() -> BuiltinEncoder:
    torch.manual_seed(0)
    config = BuiltinConfig(
        image_size=32, grid=4, stem=8, middle=12, hidden=12, heads=2, middle_blocks=1, blocks=1, width=10, words=7
    )
    return BuiltinEncoder(BuiltinNetwork(config), Vocabulary(WORDS))


def test_it_is_an_encoder(small: BuiltinEncoder) -> None:
    assert isinstance(small, Encoder)
    assert (small.name, small.image_size, small.grid, small.width) == ("builtin", 32, 4, 10)
    assert len(small.fingerprint) == 64


@pytest.mark.parametrize(("mode", "size"), [("RGB", (32, 32)), ("L", (17, 90)), ("RGBA", (200, 31)), ("P", (5, 5))])
def test_pictures_of_any_mode_and_size_are_resized_whole(
    small: BuiltinEncoder, mode: str, size: tuple[int, int]
) -> None:
    pixels = small.preprocess([Image.new(mode, size), Image.new("RGB", (64, 64))])
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == torch.float32


def test_embeddings_have_the_promised_shapes_and_unit_length(small: BuiltinEncoder) -> None:
    embedding = small.embed_images(torch.randn(3, 3, 32, 32))
    assert embedding.patches.shape == (3, 16, 10)
    assert embedding.image.shape == (3, 10)
    texts = small.embed_texts(["a photo", "a wine glass"])
    assert texts.shape == (2, 10)
    for vectors in (embedding.patches, embedding.image, texts):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))


def test_nothing_in_gives_nothing_out(small: BuiltinEncoder) -> None:
    assert small.preprocess([]).shape == (0, 3, 32, 32)
    assert small.embed_texts([]).shape == (0, 10)


def test_a_picture_does_not_depend_on_its_batch(small: BuiltinEncoder) -> None:
    pixels = torch.randn(4, 3, 32, 32)
    together, alone = small.embed_images(pixels).patches, small.embed_images(pixels[2:3]).patches
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-4)


def test_patches_run_row_by_row(small: BuiltinEncoder) -> None:
    # A change in the top right corner reaches the convolutional state of patch 3 and not that of patch 12.
    plain, marked = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    marked[..., :4, -4:] = 5.0
    states = [small.network.vision.hidden_states(p)[0] for p in (plain, marked)]
    change = (states[1] - states[0]).norm(dim=-1)[0]
    assert change[3] > 0
    assert change[12] == 0


def test_unknown_words_are_dropped_and_plurals_understood(small: BuiltinEncoder) -> None:
    same = small.embed_texts(["A photo of a dagger!", "a photo a dagger", "a photo a daggers"])
    torch.testing.assert_close(same[0], same[1])
    torch.testing.assert_close(same[0], same[2])


@pytest.mark.parametrize("text", ["", "?!", "zyzzyva quux"])
def test_a_text_without_a_known_word_is_an_error_that_names_it(small: BuiltinEncoder, text: str) -> None:
    with pytest.raises(ValueError, match="knows none of the words") as caught:
        small.embed_texts(["a cat", text])
    assert repr(text) in str(caught.value)


def test_a_saved_encoder_reads_back(small: BuiltinEncoder, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_file(small.network.state_dict(), path, header_of(small.network.config, small.vocabulary))
    again = read_encoder(path)
    assert again.fingerprint == small.fingerprint
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        again.embed_images(pixels).patches, small.embed_images(pixels).patches, atol=1e-5, rtol=1e-4
    )


def test_the_fingerprint_covers_weights_and_words(small: BuiltinEncoder) -> None:
    torch.manual_seed(1)
    other = BuiltinEncoder(BuiltinNetwork(small.network.config), small.vocabulary)
    words = BuiltinEncoder(small.network, Vocabulary(("one", *WORDS[1:])))
    assert len({small.fingerprint, other.fingerprint, words.fingerprint}) == 3


def test_a_file_without_header_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="'config' and 'words'"):
        read_encoder(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        read_encoder(tmp_path / "missing.safetensors")


# From here on: the weights of the wheel, on scenes that training never drew.


@pytest.fixture(scope="module")
def shipped() -> BuiltinEncoder:
    return load_builtin()


@pytest.fixture(scope="module")
def art() -> Art:
    folder = ROOT / "bench" / "art"
    table = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    return load_art(folder, [s for s in table["styles"] if s not in table["held_out"]][:4])


def test_the_shipped_file_is_small_half_precision_and_reproducible(shipped: BuiltinEncoder) -> None:
    assert WEIGHTS.stat().st_size <= 12_000_000
    assert shipped.fingerprint == load_builtin().fingerprint
    assert (shipped.image_size, shipped.grid) == (128, 16)


def test_it_knows_what_it_sees(shipped: BuiltinEncoder, art: Art) -> None:
    generator = SceneGenerator(art, art.styles, (), 5, SceneOptions(objects=(1, 1), scale=(0.4, 0.6)))
    scenes = [generator.scene(i) for i in range(64)]
    texts = shipped.embed_texts([c.name for c in art.concepts])
    patches = shipped.embed_images(shipped.preprocess([Image.fromarray(s.image) for s in scenes])).patches
    right = 0
    for scene, vectors in zip(scenes, patches, strict=True):
        covered = torch.from_numpy(scene.owner == 0).view(16, 8, 16, 8).float().mean((1, 3)).flatten() > 0.5
        best = (vectors[covered] @ texts.T).mean(0).argmax()
        right += int(best) == scene.objects[0].concept
    assert right >= 38  # of 64, among more than 300 concepts
