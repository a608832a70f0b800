"""Nothing that is named gets lost on the way to the list of files."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pytest

from guardcore.screening.inputs import Inputs, discover, printable, read_list


def names(inputs: Inputs) -> list[str]:
    return [item.path for item in inputs.files]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder_is_walked_by_name_with_everything_in_it(pictures: Path) -> None:
    found = discover(["pictures"])
    assert names(found) == ["pictures/blue.jpg", "pictures/notes.txt", "pictures/red.png", "pictures/sub/red.png"]
    assert found.folders == ["pictures"]


def test_arguments_keep_their_order_and_repetitions(pictures: Path) -> None:
    found = discover(["pictures/red.png", "missing.png", "pictures/blue.jpg", "pictures/red.png"])
    assert names(found) == ["pictures/red.png", "missing.png", "pictures/blue.jpg", "pictures/red.png"]


def test_patterns_are_expanded_unless_a_file_has_that_name(pictures: Path) -> None:
    assert names(discover(["pictures/*.png"])) == ["pictures/red.png"]
    assert names(discover(["pictures/**/*.png"])) == ["pictures/red.png", "pictures/sub/red.png"]
    touch(pictures / "[a].png", pictures / "a.png")
    assert names(discover(["pictures/[a].png"])) == ["pictures/[a].png"]


def test_a_pattern_without_a_match_is_an_error_line(pictures: Path) -> None:
    (item,) = discover(["*.webp"]).files
    assert item.error is not None
    assert str(item.error) == "not-found: no file matches"


def test_hidden_files_are_left_out_loudly(pictures: Path) -> None:
    touch(pictures / ".hidden.png", pictures / ".git" / "x.png")
    found = discover(["pictures"])
    assert not [name for name in names(found) if "/." in name]
    assert found.notices == ["pictures: 2 hidden entries left out (--hidden takes them)"]
    assert {"pictures/.git/x.png", "pictures/.hidden.png"} < set(names(discover(["pictures"], hidden=True)))
    assert names(discover(["pictures/.hidden.png"])) == ["pictures/.hidden.png"]


def test_a_loop_of_links_ends_and_is_told(pictures: Path) -> None:
    (pictures / "sub" / "up").symlink_to(pictures, target_is_directory=True)
    (pictures / "again").symlink_to(pictures / "sub", target_is_directory=True)
    found = discover(["pictures"])
    assert len(names(found)) == len(set(names(found))) == 4
    assert found.notices == [
        "pictures/again/up: the same folder as pictures, walked once",
        "pictures/sub: the same folder as pictures/again, walked once",
    ]


def test_many_links_between_folders_do_not_explode(tmp_path: Path) -> None:
    folders = [tmp_path / f"d{i}" for i in range(12)]
    for folder in folders:
        touch(folder / "x.png")
    for folder in folders:  # every order of visits would be 12! walks
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other, target_is_directory=True)
    assert len(discover([str(tmp_path)]).files) == 12


def test_a_deep_tree_needs_no_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Deeper than Python's recursion limit; longer paths than the system takes end in a named error.
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Path("x.png").write_bytes(b"x")
    os.chdir(tmp_path)
    (item,) = discover(["d"]).files
    assert item.path.endswith("x.png")
    for _ in range(1200):  # so deep a tree is beyond the clean-up of older Pythons
        os.chdir("d")
    os.unlink("x.png")
    for _ in range(1200):
        os.chdir("..")
        os.rmdir("d")


def test_an_unreadable_folder_has_its_line(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.listdir

    def refuse(path: str) -> list[str]:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return really(path)

    monkeypatch.setattr("guardcore.screening.inputs.os.listdir", refuse)  # chmod would not stop root
    item = discover(["pictures"]).files[-1]
    assert item.path == "pictures/sub"
    assert item.error is not None
    assert item.error.kind.value == "permission-denied"


def test_special_files_and_dead_links_in_a_folder_are_listed(pictures: Path) -> None:
    os.mkfifo(pictures / "pipe")
    (pictures / "dead").symlink_to("nowhere")
    assert {"pictures/pipe", "pictures/dead"} < set(names(discover(["pictures"])))


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    found = discover([str(tmp_path)])
    assert found.files == []
    assert found.notices == [f"{tmp_path}: no file in this folder"]


def test_a_list_is_taken_literally_and_in_place(pictures: Path) -> None:
    listed = ["pictures/*.png", "pictures/sub"]
    found = discover(["a.png", "-", "b.png"], listed)
    assert names(found) == ["a.png", "pictures/*.png", "pictures/sub/red.png", "b.png"]


@pytest.mark.parametrize(
    ("data", "null", "paths"),
    [
        (b"a.png\nb c.png\n", False, ["a.png", "b c.png"]),
        (b"a.png\r\n\r\n\nb.png", False, ["a.png", "b.png"]),
        (b"a\nb.png\0c.png\0", True, ["a\nb.png", "c.png"]),
        (b"", False, []),
        (b"\xff.png\n", False, [os.fsdecode(b"\xff.png")]),
    ],
    ids=["lines", "blank lines and CR", "NUL", "nothing", "not UTF-8"],
)
def test_lists_on_standard_input(data: bytes, null: bool, paths: list[str]) -> None:
    assert list(read_list(BytesIO(data), null=null)) == paths


def test_names_that_are_not_utf8_can_be_printed() -> None:
    assert printable(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
    assert printable("caf\u00e9.png") == "caf\u00e9.png"
