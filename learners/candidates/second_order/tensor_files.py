"""Tensors in files of a folder that may take so many bytes, which several processes share.

The files are an aid: whatever is not there is computed again. So nothing of them is an error, one
that is damaged goes, and where there is no room the ones that were not read for longest do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from amc_env.errors import RunFolderError
from amc_env.files import save_bytes

DISK = 8 * 2**30
"""Bytes that the files of a folder may take."""

_SUFFIX = ".safetensors"
_SUM = "checksum"
_LENGTH = 8  # bytes of a safetensors file that say how long its header is


class TensorFiles:
    """Tensors by name, one safetensors file for each name.

    Args:
        folder: Made when it is needed, in a folder that is there.
        disk: Bytes that its files may take.
    """

    def __init__(self, folder: Path, disk: int = DISK) -> None:
        self.folder = folder
        self._disk = disk

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes a file if it is not there, and deletes others that it leaves no room for."""
        path = self._path(name)
        if not self.folder.parent.is_dir() or path.exists():
            return
        plain = {key: x.detach().cpu().contiguous() for key, x in tensors.items()}
        data = save(plain)
        data = save(plain, {_SUM: str(zlib.crc32(_content(data)))})
        if len(data) > self._disk:
            return
        with contextlib.suppress(OSError, RunFolderError):
            self._make_room(len(data))
            save_bytes(path, data)

    def read(self, name: str, device: torch.device | str) -> dict[str, Tensor] | None:
        """Returns the tensors of a file, ``None`` if there is none; a damaged one is deleted."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            found = _checked(data)
        except (SafetensorError, ValueError, KeyError):
            with contextlib.suppress(OSError):
                path.unlink()  # the next one that has its tensors writes it again
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # read last
        return {key: x.to(device) for key, x in found.items()}

    def size(self) -> int:
        """Returns the bytes that its files take."""
        return sum(size for _, size, _ in self._files())

    def _make_room(self, count: int) -> None:
        files = sorted(self._files())
        left = self._disk - count - sum(size for _, size, _ in files)
        for _, size, path in files:
            if left >= 0:
                return
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.unlink()
            left += size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yields when each file was read last, its bytes and its path."""
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                yield found.st_mtime, found.st_size, path

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}{_SUFFIX}"


def _checked(data: bytes) -> dict[str, Tensor]:
    """Returns the tensors of a file.

    Raises:
        SafetensorError: If it is no such file, as ``KeyError`` and ``ValueError``.
    """
    header = json.loads(data[_LENGTH : len(data) - len(_content(data))])
    if zlib.crc32(_content(data)) != int(header["__metadata__"][_SUM]):
        raise ValueError("other numbers than were written")
    return load(data)


def _content(data: bytes) -> memoryview:
    """Returns the numbers of a safetensors file, without its header."""
    return memoryview(data)[_LENGTH + int.from_bytes(data[:_LENGTH], "little") :]
