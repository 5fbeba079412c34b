"""What a user's YAML file may get wrong: one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropy_rft.files import load_yaml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not YAML"),
        (b"a: 1\na: 2", "the key 'a' occurs twice, in lines 1 and 2"),
        ("a: é".encode("latin-1"), "is not UTF-8"),
        (None, "cannot be read: No such file"),
    ],
    ids=["not YAML", "a key twice", "another encoding", "no file"],
)
def test_one_line_names_the_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "plan.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_yaml(file, "plan")
    assert str(error.value).startswith(f"plan {str(file)!r} ")
    assert "\n" not in str(error.value)


def test_what_it_reads(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("a: {b: [1, é]}", encoding="utf-8")
    assert load_yaml(file, "plan") == {"a": {"b": [1, "é"]}}
    file.write_text("")
    assert load_yaml(str(file), "plan") is None
