"""Whether a list is believed: the table of the design record, and every reachable state with every combination of
facts."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import msgspec
import pytest

from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.trust import (
    Basis,
    Doubt,
    ListFacts,
    Nothing,
    Stored,
    Trust,
    Unverified,
    Verdict,
    Verified,
    Why,
    contradicted,
    judge,
    judge_deletion,
    verify_soon,
)

LIMITS = RemovalLimits(count=2, share=0.2, verify_after_s=30.0, per_second=50.0)
NOW = 100.0
DESIGN = Path("designs/0011-one-decision-about-removals.md")
VERDICTS = {
    "ignore": Verdict.IGNORE,
    "confirm": Verdict.CONFIRM,
    "at rate": Verdict.CONFIRM_AT_RATE,
    "held at rate": Verdict.CONFIRM_HELD_AT_RATE,
    "hold": Verdict.HOLD,
    "until accepted": Verdict.HOLD_UNTIL_ACCEPTED,
}
BASES: tuple[Basis, ...] = (Stored(), Unverified(NOW + 10.0), Verified())
LIST = ListFacts(version="90", listed=10, known=10, engaged=10)


def doubt(why: Why, since: float = NOW, relist_at: float = NOW + 30.0) -> Doubt:
    return Doubt(why, since, relist_at, "why")


ROWS: dict[str, tuple[Doubt | None, ...]] = {
    "none, or BEHIND or FOREIGN, not due": (None, doubt(Why.BEHIND, NOW - 29.0), doubt(Why.FOREIGN, NOW - 29.0)),
    "BEHIND, due": (doubt(Why.BEHIND, NOW - 30.0, NOW),),
    "FOREIGN, due": (doubt(Why.FOREIGN, NOW - 30.0, NOW),),
    "MASS, not due": (doubt(Why.MASS, NOW - 29.0, NOW + 1.0),),
    "MASS, due": (doubt(Why.MASS, NOW - 30.0, NOW),),
    "accepted (`SIGUSR2`)": (None, *(doubt(why, NOW - 30.0, NOW) for why in Why)),
}
COLUMNS = {
    "complete": {},
    "lacks few": {"missing": 2, "held": 2},
    "lacks a mass": {"missing": 6, "held": 6},
    "lacks a further mass": {"missing": 8, "held": 2},
    "older, complete": {"is_behind": True},
    "older, lacks some": {"is_behind": True, "missing": 1},
    "shows older states": {"missing": 1, "regressed": 1},
    "foreign": {"missing": 10, "is_foreign": True},
}


def table() -> Iterator[tuple[str, str, str]]:
    """Yield the row, the column and the text of each cell of the design record's table."""
    lines = [line.strip("|").split("|") for line in DESIGN.read_text().splitlines() if line.startswith("| ")]
    (_, *columns), *rows = ([cell.strip() for cell in line] for line in lines)
    for row, *cells in rows:
        yield from ((row, column, cell) for column, cell in zip(columns, cells, strict=True))


def facts(**different: object) -> ListFacts:
    return msgspec.structs.replace(LIST, **different)


def test_table_has_each_doubt_and_each_kind_of_list_once() -> None:
    assert [(row, column) for row, column, _ in table()] == [*product(ROWS, COLUMNS)]


@pytest.mark.parametrize(("row", "column", "cell"), [*table()])
def test_list_is_judged_as_in_the_table(row: str, column: str, cell: str) -> None:
    expected, _, exception = cell.partition(", or ")
    name, _, left = expected.partition(" → ")
    for before, basis in product(ROWS[row], BASES):
        accepted_at = NOW if row.startswith("accepted") else None
        trust, verdict = judge(Trust(basis, before, "95", accepted_at), facts(**COLUMNS[column]), LIMITS, NOW)
        if exception and isinstance(basis, Stored):
            assert (verdict, trust.doubt) == (VERDICTS[exception], None)
            continue
        assert verdict is VERDICTS[name]
        assert (trust.doubt and trust.doubt.why) == (Why[left] if left else None)
        assert trust.accepted_at is None


# --- every reachable state with every combination of facts ---


def shifted(trust: Trust, seconds: float) -> Trust:
    """Return the trust as it is after that time, with all times relative to NOW, and without differences between times
    that are long past."""

    def moved(at: float, earliest: float) -> float:
        return max(at - seconds, NOW - earliest)

    basis, reason = trust.basis, trust.doubt
    if isinstance(basis, Unverified):
        basis = Unverified(moved(basis.verify_at, 0.0))
    if reason is not None:
        reason = Doubt(reason.why, moved(reason.since, 30.0), moved(reason.relist_at, 0.0), "")
    return Trust(basis, reason, "95" if trust.version else "", None if trust.accepted_at is None else NOW)


def combinations() -> Iterator[ListFacts]:
    for missing, announced, restored, listed in product((0, 1, 2, 6, 10), (0, 3), (0, 1), (4, 200)):
        for held, regressed in product({0, missing // 2, missing}, {0, min(1, missing)}):
            for is_behind, is_foreign in product((False, True), repeat=2):
                if is_foreign and (missing < 10 - restored or announced or regressed):
                    continue
                if announced and (is_behind or regressed or missing + announced > 10):
                    continue
                yield facts(
                    missing=missing,
                    held=held,
                    announced=announced,
                    regressed=regressed,
                    held_until_accepted=restored,
                    listed=listed,
                    is_behind=is_behind,
                    is_foreign=is_foreign,
                )


FACTS = [*combinations()]
FIRST = ListFacts(version="90", listed=10)
"""The first list of a run without a state file: nothing is known that it could lack."""


def after(trust: Trust) -> Iterator[Trust]:
    """Yield the states that can follow."""
    yield verify_soon(trust, NOW)
    if isinstance(trust.basis, Nothing):
        yield judge(trust, FIRST, LIMITS, NOW)[0]
        return
    yield msgspec.structs.replace(trust, accepted_at=NOW)
    yield contradicted(trust, LIMITS, NOW)
    yield from (judge_deletion(trust, recent, 10, LIMITS, NOW)[0] for recent in (1, 20) if not trust.is_ignoring)
    yield from (judge(trust, each, LIMITS, NOW)[0] for each in FACTS)


@cache
def reachable() -> list[Trust]:
    found, new = set[Trust](), {Trust(), Trust(Stored(), version="95"), Trust(Stored())}
    while new:
        found |= new
        following = {state for each in new for state in after(each)}
        new = {shifted(state, seconds) for state in following for seconds in (0.0, 15.0, 30.0)} - found
    return sorted(found, key=repr)


def judged_states() -> Iterator[tuple[Trust, ListFacts]]:
    return product((state for state in reachable() if not isinstance(state.basis, Nothing)), FACTS)


def relist_at(trust: Trust) -> float:
    """Return when the next list is requested because of the doubt."""
    assert trust.doubt is not None
    return trust.doubt.relist_at


def yields(trust: Trust, seen: ListFacts) -> bool:
    """Return whether a second foreign list may replace the known state."""
    is_much_larger = LIMITS.is_mass(seen.listed - seen.known, seen.listed)
    is_weak = isinstance(trust.basis, Stored) and not seen.is_behind
    return (is_weak or (isinstance(trust.basis, Unverified) and is_much_larger)) and not seen.held_until_accepted


def is_second(trust: Trust, why: Why) -> bool:
    since = trust.since(why)
    return since is not None and since <= NOW - 30.0


def test_there_are_thirteen_pairs_of_basis_and_doubt() -> None:
    pairs = {(type(state.basis), state.doubt and state.doubt.why) for state in reachable()}
    assert pairs == {(Nothing, None), *product((Stored, Unverified, Verified), (None, *Why))}


def test_every_list_in_every_state_keeps_what_is_promised() -> None:
    for trust, seen in judged_states():
        following, verdict = judge(trust, seen, LIMITS, NOW)
        is_accepted, engaged = trust.accepted_at is not None, seen.engaged - seen.announced
        is_mass = LIMITS.is_mass(seen.missing, engaged)
        is_ending = verdict in (Verdict.CONFIRM, Verdict.CONFIRM_AT_RATE) and bool(seen.missing)
        is_ending |= verdict is Verdict.CONFIRM_HELD_AT_RATE
        is_old = bool(seen.regressed or (seen.is_behind and seen.missing))
        # What is ignored changes nothing but the doubt, and another list is requested soon.
        if verdict is Verdict.IGNORE:
            assert (following.basis, following.version) == (trust.basis, trust.version)
            assert following.is_ignoring
            assert NOW < relist_at(following) <= NOW + 30.0
        else:
            assert following.version == seen.version
            assert not following.is_ignoring
        # Only an administrator ends clusters that an older or restored server does not show.
        if (is_old and not seen.is_foreign) or (is_mass and seen.held_until_accepted):
            assert is_accepted or not is_ending
        # A foreign list ends and engages nothing, unless a second one replaces what may be wrong.
        if seen.is_foreign:
            may_replace = is_second(trust, Why.FOREIGN) and yields(trust, seen)
            assert is_accepted or verdict is (Verdict.CONFIRM_AT_RATE if may_replace else Verdict.IGNORE)
        # A mass goes at a limited rate, once a second list lacks it too.
        elif is_mass and is_ending and not is_accepted:
            besides = LIMITS.is_mass(seen.missing - seen.held, engaged)
            expected = Verdict.CONFIRM_HELD_AT_RATE if besides and seen.held else Verdict.CONFIRM_AT_RATE
            assert (verdict, is_second(trust, Why.MASS)) == (expected, True)
            assert seen.held or not besides
        # While a second list is awaited, nothing goes.
        if trust.since(Why.MASS) is not None and not is_second(trust, Why.MASS) and not is_accepted:
            assert not is_ending
        # What is held for a second list gets one.
        if verdict in (Verdict.HOLD, Verdict.CONFIRM_HELD_AT_RATE):
            assert following.since(Why.MASS) is not None
            assert NOW < relist_at(following) <= NOW + 30.0
        # An administrator is obeyed at once, and for one list.
        if is_accepted:
            assert verdict is (Verdict.CONFIRM_AT_RATE if seen.missing else Verdict.CONFIRM)
            assert (following.doubt, following.accepted_at) == (None, None)


def test_basis_follows_from_the_lists_that_were_used() -> None:
    for trust, seen in judged_states():
        following, verdict = judge(trust, seen, LIMITS, NOW)
        again, before = Unverified(NOW + 30.0), trust.basis
        is_replaced = seen.is_foreign and trust.accepted_at is None
        match verdict:
            case Verdict.IGNORE | Verdict.HOLD:
                expected: Basis = before
            case Verdict.HOLD_UNTIL_ACCEPTED:
                expected = before if isinstance(before, Verified) else again
            case _ if isinstance(before, Stored) or is_replaced:
                expected = again
            case _:
                is_proof = trust.accepted_at is not None or (isinstance(before, Unverified) and before.verify_at <= NOW)
                expected = Verified() if is_proof else before
        assert following.basis == expected


def lists(trust: Trust, seen: ListFacts, verdict: Verdict, *, most: int) -> float:
    """Repeat a list whenever the next one is due, until the verdict; return after how many seconds."""
    now = NOW
    for _ in range(most):
        trust, found = judge(trust, seen, LIMITS, now)
        if found is verdict:
            return now - NOW
        now = max(now, relist_at(trust))
        seen = msgspec.structs.replace(seen, held=seen.missing)
    raise AssertionError(f"after {most} lists: {trust}")


def test_every_state_converges() -> None:
    for trust in (state for state in reachable() if state.accepted_at is None):
        assert lists(trust, facts(), Verdict.CONFIRM, most=1) == 0.0
        assert lists(trust, facts(missing=1), Verdict.CONFIRM, most=2) <= 30.0
        assert lists(trust, facts(missing=6), Verdict.CONFIRM_AT_RATE, most=3) <= 60.0
        assert lists(trust, facts(is_behind=True), Verdict.CONFIRM, most=8) <= 35.0
        assert lists(trust, facts(is_behind=True, missing=6), Verdict.HOLD_UNTIL_ACCEPTED, most=8) <= 35.0
        if isinstance(trust.basis, Stored):
            assert lists(trust, facts(missing=10, is_foreign=True), Verdict.CONFIRM_AT_RATE, most=2) <= 30.0


# --- times and messages ---


def judged(trust: Trust, now: float = NOW, **different: object) -> Trust:
    return judge(trust, facts(**different), LIMITS, now)[0]


def test_first_list_is_verified_by_a_list_that_is_used_after_the_verify_after_delay() -> None:
    trust, verdict = judge(Trust(), FIRST, LIMITS, NOW)
    assert (trust, verdict) == (Trust(Unverified(NOW + 30.0), version="90"), Verdict.CONFIRM)
    assert judged(trust, NOW + 29.0).basis == trust.basis
    assert judged(trust, NOW + 30.0) == Trust(Verified(), version="90")


def test_verification_of_the_first_list_can_be_brought_forward_and_not_back() -> None:
    trust = Trust(Unverified(NOW + 30.0))
    assert verify_soon(trust, NOW + 6.0).basis == Unverified(NOW + 6.0)
    assert verify_soon(trust, NOW + 60.0) == trust
    assert [verify_soon(Trust(basis), NOW) for basis in (Nothing(), Stored(), Verified())] == [
        Trust(basis) for basis in (Nothing(), Stored(), Verified())
    ]


def test_mass_is_held_since_the_first_list_until_the_second() -> None:
    trust = judged(Trust(Verified()), missing=6, announced=1)
    assert trust.doubt == Doubt(Why.MASS, NOW, NOW + 30.0, trust.doubt.message if trust.doubt else "")
    assert trust.doubt.message == (
        "the source's list lacks 6 of 9 engaged clusters: these stay engaged until a second list lacks them too"
    )
    trust = judged(trust, NOW + 29.0, missing=1)
    assert trust.doubt is not None
    assert (trust.doubt.since, trust.doubt.relist_at) == (NOW, NOW + 30.0)
    assert "lacks 1 of 10 engaged clusters" in trust.doubt.message


def test_second_list_that_lacks_a_mass_besides_what_is_held_is_a_first_list() -> None:
    """For example, all held objects were seen again in between, or a tenant deletes projects all the time."""
    trust = Trust(Verified(), doubt(Why.MASS, NOW - 30.0, NOW))
    for held, verdict in ((0, Verdict.HOLD), (2, Verdict.CONFIRM_HELD_AT_RATE), (4, Verdict.CONFIRM_AT_RATE)):
        following, found = judge(trust, facts(missing=6, held=held), LIMITS, NOW)
        assert found is verdict
        assert following.doubt is None or following.doubt.relist_at == NOW + 30.0
        assert following.doubt is None or f"lacks {6 - held} of 10" in following.doubt.message


@pytest.mark.parametrize(
    ("verify_after_s", "behind_s", "foreign_s"), [(30.0, 5.0, 30.0), (86400.0, 30.0, 30.0), (6.0, 1.0, 6.0)]
)
def test_list_after_an_ignored_one_is_requested_soon(verify_after_s: float, behind_s: float, foreign_s: float) -> None:
    limits = msgspec.structs.replace(LIMITS, verify_after_s=verify_after_s)
    behind, _ = judge(Trust(Verified()), facts(is_behind=True), limits, NOW)
    foreign, _ = judge(Trust(Verified()), facts(missing=10, is_foreign=True), limits, NOW)
    assert (relist_at(behind), relist_at(foreign)) == (NOW + behind_s, NOW + foreign_s)
    assert behind.doubt is not None
    assert "has caught up, or for" in behind.doubt.message
    again, _ = judge(behind, facts(is_behind=True), limits, NOW + 1.0)
    assert again.since(Why.BEHIND) == NOW


def test_message_about_another_server_says_what_ends_it() -> None:
    for basis, is_named in ((Stored(), True), (Verified(), False)):
        trust = judged(Trust(basis), missing=10, is_foreign=True)
        assert trust.doubt is not None
        assert trust.doubt.message.startswith("the source's list contains none of the 10 engaged clusters")
        assert trust.doubt.message.endswith("an administrator accepts what the server shows (SIGUSR2)")
        assert ("until a second list contains none either" in trust.doubt.message) is is_named
        assert judged(trust, NOW + 7.0, missing=10, is_foreign=True).since(Why.FOREIGN) == NOW


def test_second_larger_list_of_another_server_is_the_first_list_of_that_server() -> None:
    trust = Trust(Unverified(NOW), doubt(Why.FOREIGN, NOW - 30.0, NOW), "95")
    following, verdict = judge(trust, facts(missing=10, is_foreign=True, listed=200), LIMITS, NOW)
    assert (following, verdict) == (Trust(Unverified(NOW + 30.0), version="90"), Verdict.CONFIRM_AT_RATE)


def test_watched_deletions_are_held_only_in_a_burst() -> None:
    trust = Trust(Verified(), version="95")
    assert judge_deletion(trust, 2, 8, LIMITS, NOW) == (trust, None)
    held, message = judge_deletion(trust, 3, 7, LIMITS, NOW)
    assert held == Trust(Verified(), Doubt(Why.MASS, NOW, NOW + 30.0, message or ""), "95")
    assert (message or "").startswith("the API server's watch reported the deletion of 3 engaged clusters within 30 s")
    assert judge_deletion(held, 4, 6, LIMITS, NOW + 5.0) == (held, message)
    assert judge_deletion(trust, 20, 80, LIMITS, NOW)[1] is None, "a fifth of all clusters"
    assert judge_deletion(trust, 21, 79, LIMITS, NOW)[1] is not None


def test_contradicted_lists_are_doubted_again() -> None:
    trust = contradicted(Trust(Verified(), version="95"), LIMITS, NOW)
    assert trust.doubt is not None
    assert (trust.basis, trust.version, trust.doubt.why) == (Verified(), "95", Why.MASS)
    assert (trust.doubt.since, trust.doubt.relist_at) == (NOW, NOW + 30.0)
    assert trust.doubt.message == (
        "a read found a cluster that the source's lists lack, so they are incomplete: missing clusters stay engaged "
        "until lists are complete"
    )


def test_accepted_list_verifies_the_first_one() -> None:
    assert judged(Trust(Unverified(NOW + 20.0), doubt(Why.MASS), accepted_at=NOW)).basis == Verified()
