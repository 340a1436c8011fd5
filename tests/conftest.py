"""What `make test` leaves out, and fixtures for every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.once import SharedFolders
from support.proofs import proved_once

from amc_compress.agents.testing import AgentContract
from amc_compress.learners.testing import LearnerContract
from amc_env.validation import references

pytest_plugins = ["support.runs.finished_runs"]
settings.register_profile("fast")

REPOSITORY = Path(__file__).resolve().parent.parent
ON_EVERY_NETWORK = {
    LearnerContract.test_an_uncut_plan_has_the_original_accuracy,
    LearnerContract.test_costs_promised_are_costs_delivered,
    LearnerContract.test_evaluation_agrees_with_the_compressed_network,
    LearnerContract.test_a_compressed_network_has_finite_outputs_for_every_class,
    LearnerContract.test_an_environment_can_be_made_of_it,
}
"""Of the contract of learners, what depends on the network's numbers; one network does for the
others."""

COMPOSED = {"TestDeepCompression", "TestJointUniform", "TestCodebookQuantization"}
"""Contracts of learners that others are much like, or that are made of others."""

OF_PARTS = {
    LearnerContract.test_equal_learners_and_equal_plans_give_equal_numbers,
    LearnerContract.test_the_seed_decides_the_order_of_a_loader_that_shuffles,
}
"""Of the contract of learners, what prepares one again, which takes long where it has parts."""

OF_EVERY_AGENT = {
    AgentContract.test_a_warm_start_of_another_network_is_rejected,
    AgentContract.test_takes_the_environment_as_gymnasium_makes_it,
    AgentContract.test_rejects_a_senseless_number_of_episodes,
    AgentContract.test_rejects_what_is_no_compression_environment,
    AgentContract.test_rejects_an_evaluation_that_is_no_number,
}
"""Of the contract of agents, what their base class does; one agent does for all."""

VARIANTS = {
    "TestDDPGWithBroadcastReward",
    "TestDDPGWithScreenedElites",
    "TestTD3",
    "TestTQC",
    "TestCrossQ",
    "TestSAC",
    "TestDDPGSeededBySensitivity",
    "TestGaussianProcess",
}
"""Agents that differ from another one, DDPG or TPE, in how they learn alone."""

OF_VARIANTS = {
    AgentContract.test_every_plan_meets_the_budget_above_and_below,
    AgentContract.test_same_seed_gives_the_same_trials,
    AgentContract.test_a_killed_search_replays_from_its_record_without_evaluating_again,
    AgentContract.test_a_warm_start_costs_no_evaluation_and_changes_no_repeatability,
    AgentContract.test_leaves_the_global_generators_and_the_thread_count_alone,
}
"""Of the contract of agents, what depends on how they learn."""

APART = (
    "experiments/automl",
    "experiments/benchmarks",
    "experiments/examples/test_single_file_scripts.py",
)
"""Tests of what is in the tree and not in the package."""


def repeats(item: pytest.Function) -> bool:
    """Whether a case goes the same way as another one that is quick or runs anyway."""

    def is_among(tests: set[Callable[..., None]]) -> bool:
        return item.originalname in {test.__name__ for test in tests}

    cls = item.cls or object
    if issubclass(cls, LearnerContract):
        is_composed = cls.__name__ in COMPOSED
        if item.callspec.params["name"] == "residual":
            return is_composed and is_among(OF_PARTS)
        return is_composed or not is_among(ON_EVERY_NETWORK)
    if issubclass(cls, AgentContract):
        is_of_all = is_among(OF_EVERY_AGENT) and cls.__name__ != "TestLocalSearch"
        return is_of_all or (cls.__name__ in VARIANTS and not is_among(OF_VARIANTS))
    return False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves to ``make test-all`` what would only repeat, and what is not in the package."""
    apart = tuple(str(Path(__file__).parent / place) for place in APART)
    for item in items:
        if str(item.path).startswith(apart) or (
            isinstance(item, pytest.Function) and repeats(item)
        ):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Test processes run side by side; a thread pool in each would make all of them slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_randomness() -> None:
    """What a test draws without a seed does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_proof(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of tracing itself prove every network; all others those that are new."""
    if "tracing" in request.path.parts:
        yield
    else:
        with proved_once():
            yield


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


@pytest.fixture(autouse=True)
def _no_code_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test resolves by its path is no user's code in the next one."""
    monkeypatch.setattr(references, "_sources", dict(references._sources))
