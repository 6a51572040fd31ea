from __future__ import annotations

import os

import pytest

from diffusers_fdu.utils.io import atomic_write, read_json, write_json, write_text


def test_what_is_written_is_read(tmp_path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "Gödel 🦊", "values": [1, 2.5, None]})
    assert read_json(path) == {"name": "Gödel 🦊", "values": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "older")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        write_json(path, object())

    def full(handle):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "older"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "holds no JSON object"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON|holds no JSON"),
        (b"\xff\xfe", "is no JSON|codec"),
        (b'{"a": "' + b"x" * 200 + b'"}', "more than 100 bytes"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(path, 100 if b"xx" in content else 10**6)
    with pytest.raises(ValueError, match=r"cannot read .*none.json"):
        read_json(tmp_path / "none.json")
