"""What will go warns where it is used, names what to use, and works as before."""

from __future__ import annotations

import warnings

import pytest

from amc_env.support.deprecation import deprecated, renamed_arguments


@deprecated("measure", removed_in="0.3")
def gauge(value: int) -> int:
    return value + 1


@deprecated("Network", removed_in="0.3")
class Net:
    def __init__(self, size: int) -> None:
        self.size = size


@renamed_arguments(episodes="evaluations", removed_in="0.3")
def search(*, evaluations: int = 5) -> int:
    return evaluations


def test_a_function_and_a_class_warn_where_they_are_used():
    with pytest.warns(DeprecationWarning, match=r"Use measure instead; .* version 0\.3") as seen:
        assert gauge(2) == 3
    assert seen[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="Use Network instead"):
        assert Net(4).size == 4


def test_an_argument_is_taken_by_its_old_name_with_a_warning():
    with pytest.warns(DeprecationWarning, match="Use 'evaluations' instead of 'episodes'") as seen:
        assert search(episodes=7) == 7
    assert seen[0].filename == __file__
    assert search.__name__ == "search"


def test_the_new_name_warns_not_and_both_names_are_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert search(evaluations=7) == 7
        assert search() == 5
    with pytest.raises(TypeError, match="got 'evaluations' twice, once by its old name 'episodes'"):
        search(evaluations=1, episodes=2)
