"""What `make test` leaves out, and fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.once import SharedFolders

from amc_compress.learners.testing import LearnerContract

settings.register_profile("fast")

REPOSITORY = Path(__file__).resolve().parent.parent
ON_EVERY_NETWORK = {
    "test_an_uncut_plan_has_the_original_accuracy",
    "test_costs_promised_are_costs_delivered",
    "test_judgement_agrees_with_the_compressed_network",
    "test_a_compressed_network_has_finite_outputs_for_every_class",
    "test_an_environment_can_be_made_of_it",
    "test_files_are_not_larger_than_budgets_count",
}
"""Tests of the learners' contract whose numbers depend on the network.

``make test`` runs the others on the residual network alone, ``make test-all`` on every one.
"""


APART = (
    "experiments/automl",
    "experiments/benchmarks",
    "experiments/examples/test_single_file_scripts.py",
)
"""What is in the tree and not in the package, and of which ``make test-all`` runs the tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    apart = tuple(str(Path(__file__).parent / place) for place in APART)
    for item in items:
        if str(item.path).startswith(apart):
            item.add_marker(pytest.mark.slow)
        cls = item.cls if isinstance(item, pytest.Function) else None
        if not issubclass(cls or object, LearnerContract):
            continue
        if item.originalname not in ON_EVERY_NETWORK and "residual" not in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Test processes run side by side; a thread pool in each would make all of them slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> SharedFolders:
    """Folders that all test processes of this session read, each made once."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own in that of the session
        root = root.parent
    return SharedFolders(root / "shared")


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
