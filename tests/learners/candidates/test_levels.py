"""Levels of layers: solved once, held up to a bound, beyond that in files that several share."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from amc_compress.learners.candidates.second_order.levels import Levels, keep_levels
from amc_compress.learners.candidates.second_order.tensor_files import TensorFiles


class Solver:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def level(self, levels: Levels, name: str, bits: int) -> torch.Tensor:
        def solve() -> dict[str, torch.Tensor]:
            self.asked.append((name, bits))
            return {"codes": torch.full((100,), bits, dtype=torch.uint8), "bias": torch.ones(3)}

        found = levels.get((name, bits), solve)
        assert set(found) == {"codes", "bias"}
        return found["codes"]


def test_what_does_not_fit_is_solved_again_without_a_folder():
    levels, solver = Levels(memory=2 * 112), Solver()
    for name, bits in (("a", 2), ("b", 2), ("a", 2), ("c", 3), ("a", 2), ("b", 2)):
        assert torch.equal(solver.level(levels, name, bits), torch.full((100,), bits).byte())
    assert solver.asked == [("a", 2), ("b", 2), ("c", 3), ("b", 2)]  # "b" was asked for longest ago


def test_with_a_folder_it_comes_from_there_in_another_process_too(tmp_path):
    levels, solver = Levels(memory=112), Solver()
    levels.keep_in(tmp_path / "levels", "net")
    for bits in range(2, 9):
        solver.level(levels, "a", bits)
    files = sorted((tmp_path / "levels").iterdir())
    assert len(files) == 6
    assert {file.suffix for file in files} == {".safetensors"}
    other = pickle.loads(pickle.dumps(levels))
    for bits in range(2, 8):
        assert int(solver.level(other, "a", bits)[0]) == bits
    assert len(solver.asked) == 7  # nothing twice
    solver.level(other, "a", 8)
    assert solver.asked[-1] == ("a", 8)  # held by the first one alone, so not in a file


@pytest.mark.parametrize("harm", ["cut short", "empty", "another number", "gone", "no folder"])
def test_a_file_that_cannot_be_read_is_solved_again_once(harm, tmp_path):
    levels, solver = Levels(memory=1), Solver()
    levels.keep_in(tmp_path / "levels", "net")
    for bits in (2, 3):
        solver.level(levels, "a", bits)
    (file,) = (tmp_path / "levels").iterdir()
    whole = file.read_bytes()
    harmed = {"cut short": whole[:40], "empty": b"", "another number": whole[:-1] + b"\7"}
    if harm in harmed:
        file.write_bytes(harmed[harm])
    else:
        file.unlink()
    if harm == "no folder":  # as on another machine
        (tmp_path / "levels").rmdir()
        levels.keep_in(tmp_path / "not here" / "levels", "net")
    assert int(solver.level(levels, "a", 2)[0]) == 2
    assert solver.asked == [("a", 2), ("a", 3), ("a", 2)]
    solver.level(levels, "a", 3)  # the other goes to a file, a whole one
    if harm != "no folder":
        assert file.read_bytes() == whole
        solver.level(levels, "a", 2)
        assert len(solver.asked) == 3


def test_files_take_no_more_than_they_may_and_those_read_last_stay(tmp_path):
    levels, solver = Levels(memory=1, disk=1000), Solver()
    levels.keep_in(tmp_path / "levels", "net")
    for bits in (2, 3, 4, 5):  # "5" is held
        solver.level(levels, "a", bits)
    files = TensorFiles(tmp_path / "levels")
    each = files.size() // 3
    for place, bits in enumerate((3, 4, 2)):
        os.utime(files._path(levels._name(("a", bits))), (place, place))
    levels._files._disk = 3 * each
    solver.level(levels, "a", 3)  # read now, which "5" has to make room for
    assert len(solver.asked) == 4
    assert files.size() <= 3 * each
    for bits in (2, 5, 3):
        solver.level(levels, "a", bits)
    assert len(solver.asked) == 4
    solver.level(levels, "a", 4)
    assert solver.asked[4:] == [("a", 4)]
    levels._files._disk = each - 1  # nothing fits, and nothing goes for it
    before = set((tmp_path / "levels").iterdir())
    solver.level(levels, "a", 6)
    solver.level(levels, "a", 7)
    assert set((tmp_path / "levels").iterdir()) == before


def test_every_part_of_a_learner_has_levels_of_its_own(tmp_path: Path):
    class Part:
        def __init__(self) -> None:
            self.levels = Levels()

    class Joint:
        parts = (Part(), object(), Part())

    keep_levels(Joint(), tmp_path / "levels", "net")
    one, other = (part.levels for part in Joint.parts[::2])
    solver = Solver()
    for levels in (one, other):
        levels._memory = 1
        for bits in (2, 3):
            solver.level(levels, "a", bits)
    assert len(solver.asked) == 4
    assert len(list((tmp_path / "levels").iterdir())) == 2
