"""Sets of members as integers."""

from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.engagement.numbered_sets import NumberedSets

NAMES = st.sampled_from("abcdef")


@given(st.lists(st.tuples(st.booleans(), NAMES)))
def test_set_has_the_members_that_were_added_and_not_forgotten(steps: list[tuple[bool, str]]) -> None:
    numbered, bits, expected = NumberedSets[str](), 0, set[str]()
    for is_added, name in steps:
        if is_added:
            bits |= numbered.bit(name)
            expected.add(name)
        else:
            bits &= ~numbered.find(name)
            numbered.forget([name])
            expected.discard(name)
        assert set(numbered.members(bits)) == set(numbered) == expected
        assert len(numbered) == len(expected)
        assert bits.bit_length() <= 6
