"""Sets of members as integers: many sets of many members take little memory, whether they are equal or not."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

MemberT = TypeVar("MemberT", bound=Hashable)


class NumberedSets(Generic[MemberT]):
    """Numbers the members of sets, each of which is an integer with the bits of its members."""

    def __init__(self) -> None:
        self._bits: dict[MemberT, int] = {}
        self._members: dict[int, MemberT] = {}
        """The members by their number."""
        self._free: list[int] = []
        """Numbers of former members."""

    def __len__(self) -> int:
        return len(self._bits)

    def __iter__(self) -> Iterator[MemberT]:
        return iter(self._bits)

    def bit(self, member: MemberT) -> int:
        """Return the set with only this member, which is numbered if it is new."""
        found = self._bits.get(member)
        if found is None:
            number = self._free.pop() if self._free else len(self._bits)
            found = self._bits[member] = 1 << number
            self._members[number] = member
        return found

    def find(self, member: MemberT) -> int:
        """Return the set with only this member; the empty one if it has no number."""
        return self._bits.get(member, 0)

    def members(self, bits: int) -> Iterator[MemberT]:
        """Yield the members of a set."""
        return (self._members[number] for number, digit in enumerate(reversed(f"{bits:b}")) if digit == "1")

    def forget(self, members: Iterable[MemberT]) -> None:
        """Forget members that are in no set."""
        for member in members:
            bit = self._bits.pop(member, 0)
            if bit:
                number = bit.bit_length() - 1
                del self._members[number]
                self._free.append(number)
