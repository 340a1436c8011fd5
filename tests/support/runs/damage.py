"""Every way in which a file of a run can be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

ENTRY = "amc-network"
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**400, 10**18, "1e999", float("nan"), "", [], {}, [[]], {"a": 1},
    "x" * 5000, 1.5, "..", "\0", ["deep"],
)  # fmt: skip
"""Values that are put in the place of every value of a document; two are written unquoted."""
_DELETED = object()
Damage = Callable[[Path], None]


def ways(path: Path) -> Iterator[tuple[str, Damage]]:
    """Yields the name of a damage, and what does it to a copy of the file.

    Args:
        path: The file as it was written.
    """
    content = path.read_bytes()
    found = dict(_of_any(content))
    if path.suffix in (".json", ".jsonl"):
        found |= dict(_of_text(content.decode()))
    if path.suffix == ".json":
        found |= {k: t.encode() for k, t in _of_document(content.decode())}
    if path.suffix == ".jsonl":
        found |= {k: t.encode() for k, t in _of_lines(content.decode().splitlines())}
    if path.suffix == ".safetensors":
        found |= dict(_of_tensors(path))
    for name, damaged in found.items():
        yield name, _writes(damaged)
    yield "a folder", lambda p: (p.unlink(), p.mkdir())[1]
    yield "a loop", lambda p: (p.unlink(), p.symlink_to(p))[1]
    yield "a dangling link", lambda p: (p.unlink(), p.symlink_to("/nowhere/at/all"))[1]
    yield "missing", Path.unlink


def file_for_folder(path: Path) -> None:
    """Puts a file where there is a folder."""
    shutil.rmtree(path)
    path.write_bytes(b"x")


def _writes(content: bytes) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


def _of_any(content: bytes) -> Iterator[tuple[str, bytes]]:
    n = len(content)
    yield "empty", b""
    yield from ((f"cut at {i} tenths", content[: n * i // 10]) for i in range(1, 10))
    yield "nested lists", b"[" * 100_000
    yield "nested objects", b'{"a":' * 100_000
    yield "with a byte order mark", b"\xef\xbb\xbf" + content
    yield "with a tail", content + b"garbage"
    yield "zeros", b"\0" * n
    yield "another magic", b"XXXXXXXX" + content[8:]
    yield (
        "a flipped byte",
        content[: n // 2] + bytes([content[n // 2] ^ 255]) + content[n // 2 + 1 :],
    )
    yield "a header of 10**15 bytes", (10**15).to_bytes(8, "little") + content[8:]
    yield "a header of all bytes", max(0, n - 8).to_bytes(8, "little") + content[8:]


def _of_text(text: str) -> Iterator[tuple[str, bytes]]:
    half, rest = text[: len(text) // 2].encode(), text[len(text) // 2 :].encode()
    yield "UTF-16", text.encode("utf-16")
    yield "CRLF", text.replace("\n", "\r\n").encode()
    yield "a NUL byte", half + b"\0" + rest
    yield "no UTF-8", half + b"\xff\xfe" + rest
    yield "a key twice", text.replace("{", '{"version": 1, "version": 1,', 1).encode()
    for literal in ("null", "1e999", "1" + "0" * 5000, '"x"', "[]", "{}", "\n" * 5):
        yield f"only {literal[:10]!r}", literal.encode()


def _of_document(text: str) -> Iterator[tuple[str, str]]:
    """Every value in the place of every other, and every key missing."""
    for place in _places(json.loads(text)):
        for junk in (*JUNK, _DELETED):
            document = json.loads(text)
            _put(document, place, junk)
            name = "deleted" if junk is _DELETED else repr(junk)[:20]
            yield f"{'.'.join(map(str, place))}: {name}", _dumped(document)


def _of_lines(lines: list[str]) -> Iterator[tuple[str, str]]:
    def joined(all_lines: list[str]) -> str:
        return "".join(line + "\n" for line in all_lines)

    middle = len(lines) // 2
    for name, line in _of_document(lines[middle]):
        yield name, joined([*lines[:middle], line, *lines[middle + 1 :]])
    yield "in another order", joined(lines[::-1])
    yield "a line less", joined(lines[:-1])
    yield "a line twice", joined([*lines, lines[-1]])


def _of_tensors(path: Path) -> Iterator[tuple[str, bytes]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    name = next(key for key in sorted(tensors) if key.endswith("weight"))
    weight, other = tensors[name], {k: v for k, v in tensors.items() if k != name}

    def saved(changed: dict[str, torch.Tensor], facts: Any = metadata) -> bytes:
        return safetensors.torch.save({k: v.contiguous() for k, v in changed.items()}, facts)

    yield "no metadata", saved(tensors, None)
    yield "a tensor less", saved(other)
    yield "a tensor more", saved({**tensors, "extra": torch.zeros(3)})
    yield "no tensors", saved({})
    yield "all in half", saved({k: v.half() if v.is_floating_point() else v
                                for k, v in tensors.items()})  # fmt: skip
    for what, value in (
        ("NaN", weight * torch.nan), ("infinite", weight / 0), ("bool", weight > 0),
        ("int64", weight.long()), ("fp8", weight.to(torch.float8_e4m3fn)),
        ("a dimension more", weight[..., None]), ("a number", weight.sum()),
        ("nothing", weight[:0]),
    ):  # fmt: skip
        yield f"weights: {what}", saved({**other, name: value})
    if metadata and ENTRY in metadata:
        for what, text in _of_document(metadata[ENTRY]):
            if "\0" not in text:
                yield f"metadata: {what}", saved(tensors, {ENTRY: text})
        for text in ("", "[" * 100_000, "null", "1e999", "{}", "[]"):
            yield f"metadata: only {text[:10]!r}", saved(tensors, {ENTRY: text})


def _places(document: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values, of long lists those of the first two."""
    if isinstance(document, dict):
        pairs = list(document.items())
    else:
        pairs = list(enumerate(document))[:2] if isinstance(document, list) else []
    for key, value in pairs:
        yield (*here, key)
        yield from _places(value, (*here, key))


def _put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        document = document[key]
    if value is _DELETED:
        del document[place[-1]]
    else:
        document[place[-1]] = value


def _dumped(document: Any) -> str:
    return (
        json.dumps(document).replace('"1e999"', "1e999").replace('"deep"', "[" * 1000 + "]" * 1000)
    )
