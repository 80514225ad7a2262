"""A manifest says the same in the same bytes, and a strange one is refused before it is used."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_split.delivery.manifest import MAX_SMALL_BYTES, SMALL_FILES, Item, Manifest
from flower_split.errors import WireError

A, B = "a" * 64, "b" * 64


def make() -> Manifest:
    return Manifest(
        files={"config.json": Item(digest=A, size=3)},
        weights=(Item(digest=B, size=5), Item(digest=A, size=3)),
    )


def fields() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(make().to_bytes())
    return content


def read(content: Any) -> Manifest:
    return Manifest.from_bytes(json.dumps(content).encode())


def test_it_survives_the_journey() -> None:
    manifest = make()
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest and again.digest == manifest.digest
    assert manifest.digest == hashlib.sha256(manifest.to_bytes()).hexdigest()
    assert manifest.items == {A: Item(digest=A, size=3), B: Item(digest=B, size=5)}
    assert manifest.total == 8


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "../config.json",
        "/etc/passwd",
        "sub/config.json",
        "config.json\x00",
        "CONFIG.JSON",
        "tokenization_own.py",
        "",
        ".",
    ],
)
def test_names_that_no_model_needs_are_refused(name: str) -> None:
    content = fields()
    content["files"][name] = [A, 3]
    with pytest.raises(WireError, match="1 files that no silo needs"):
        read(content)


@pytest.mark.parametrize(
    "entry",
    [
        [A, 0],
        [A, -1],
        [A, 3.0],
        [A, True],
        [A, "3"],
        ["A" * 64, 3],
        ["a" * 63, 3],
        ["../" + "a" * 61, 3],
        [3, 3],
        [A],
        [A, 3, 3],
        {},
        None,
    ],
)
def test_entries_that_are_no_digest_and_size_are_refused(entry: object) -> None:
    for change in ({"files": {"config.json": entry}}, {"weights": [[B, 5], entry]}):
        with pytest.raises(WireError, match="has an entry that is not a SHA-256 and a size"):
            read({**fields(), **change})


def test_weights_may_be_larger_than_small_files_but_not_endless() -> None:
    size = MAX_SMALL_BYTES + 1
    assert read({**fields(), "weights": [[A, size]]}).weights[0].size == size
    for change in ({"files": {"config.json": [A, size]}}, {"weights": [[A, 1 << 60]]}):
        with pytest.raises(WireError, match="has an entry"):
            read({**fields(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"files": []},
        {"files": {}},
        {"weights": {}},
        {"weights": []},
        {"more": 1},
    ],
)
def test_other_fields_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError, match="the manifest of the model's delivery"):
        read({**fields(), **change})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(WireError, match="the manifest of the model's delivery"):
        Manifest.from_bytes(content)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_manifest_or_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        Manifest.from_bytes(content)


def test_the_list_of_names_has_plain_names_only() -> None:
    assert all(name and "/" not in name and not name.endswith(".py") for name in SMALL_FILES)
