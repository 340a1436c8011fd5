import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc_env.actions import ACTION_MAPPINGS, MappingContext

unit = st.floats(0.0, 1.0)


@given(unit, unit, unit, unit, st.sampled_from(sorted(ACTION_MAPPINGS)))
def test_encoding_a_value_and_decoding_it_gives_the_value_back(a, b, balanced, position, name):
    low, high = min(a, b), max(a, b)
    context = MappingContext((0.0, 1.0), (low, high), balanced)
    value = low + position * (high - low)
    action_mapping = ACTION_MAPPINGS[name]
    assert action_mapping.decode(action_mapping.encode(value, context), context) == pytest.approx(
        value, abs=1e-6
    )


def test_centred_half_is_the_balanced_value_and_the_ends_are_the_interval():
    context = MappingContext((0.0, 1.0), (0.2, 0.9), 0.6)
    decode = ACTION_MAPPINGS["centred"].decode
    assert [decode(a, context) for a in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.75, 0.9]
    )


def test_centred_clips_a_balanced_value_outside_the_interval():
    context = MappingContext((0.0, 1.0), (0.2, 0.5), 0.8)
    assert ACTION_MAPPINGS["centred"].decode(0.5, context) == 0.5


def test_absolute_is_the_keep_ratio_itself_and_scales_bits():
    context = MappingContext((0.0, 1.0), (0.2, 0.5), 0.3)
    assert ACTION_MAPPINGS["absolute"].decode(0.7, context) == 0.7
    bits = MappingContext((2.0, 8.0), (2.0, 8.0), 4.0)
    assert ACTION_MAPPINGS["absolute"].decode(0.5, bits) == 5.0


def test_interval_is_the_position_between_the_feasible_ends():
    context = MappingContext((0.0, 1.0), (0.2, 0.6), 0.3)
    assert ACTION_MAPPINGS["interval"].decode(0.5, context) == pytest.approx(0.4)
