"""Fixtures for every test: one thread, and the shared data where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Test processes run side by side; a thread pool in each would make all of them slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with ``data/cifar10`` and ``checkpoints``."""
    folder = Path(os.environ.get("AMC_TEST_DATA", REPOSITORY.parent / "shared"))
    for part in ("data/cifar10", "checkpoints"):
        if not (folder / part).is_dir():
            pytest.skip(
                f"{folder / part} is missing; set AMC_TEST_DATA to a folder holding data/cifar10 "
                f"and checkpoints"
            )
    return folder
