"""Seeded bugs of sharding."""

from tests.tooling.mutants.mutant import Mutant

SHARDING = "tests/unit/sharding"

MUTANTS = (
    Mutant(
        "a process regains a restored Lease from its successor at once",
        "sharding/member.py",
        "            and lease.renewal < own_renewal\n",
        "            and False\n",
        ("tests/unit/sharding/test_member.py",),
    ),
    Mutant(
        "a Lease that was not read for long counts as unchanged",
        "sharding/member.py",
        "return started_at - state.read_at < self._timing.fence_after_s and own_renewal >= state.own_renewal",
        "return True",
        (f"{SHARDING}/test_member.py",),
    ),
    Mutant(
        "a cluster is engaged before its former owner has released it",
        "sharding/ownership.py",
        "if former in self.unsettled and not (former == self.member and self._is_me(self.view.previous)):",
        "if False:",
        (f"{SHARDING}/test_ownership.py",),
    ),
    Mutant(
        "a member acknowledges a view before its losses are released",
        "sharding/group.py",
        "if not self._assignee.keeps_lost() and self.member.state.drained < ownership.view.number:",
        "if self.member.state.drained < ownership.view.number:",
        ("tests/integration/sharding/test_group.py",),
        is_async=True,
    ),
    Mutant(
        "an acknowledgement is not awaited before the next view",
        "sharding/member.py",
        "dict(former) == dict(candidates.members) or any(self._unsettled(view, {**view.previous, **former}, now))",
        "dict(former) == dict(candidates.members)",
        (f"{SHARDING}/test_member.py",),
    ),
    Mutant(
        "a group reads the wall clock",
        "sharding/group.py",
        "return time.clock_gettime(time.CLOCK_BOOTTIME)",
        "return time.time()",
        (f"{SHARDING}/test_clock.py",),
    ),
    Mutant(
        "a group reads the monotonic clock",
        "sharding/group.py",
        "return time.clock_gettime(time.CLOCK_BOOTTIME)",
        "return time.clock_gettime(time.CLOCK_MONOTONIC)",
        (f"{SHARDING}/test_clock.py",),
    ),
    Mutant(
        "a view is written without a precondition",
        "sharding/lease_objects.py",
        "return _encode(names.view, version, view.id,",
        'return _encode(names.view, "", view.id,',
        (f"{SHARDING}/test_lease_client.py",),
        is_async=True,
    ),
    Mutant(
        "a Lease is renewed or cleared without a precondition",
        "sharding/lease_objects.py",
        "return _encode(names.member(lease.member), lease.version,",
        'return _encode(names.member(lease.member), "",',
        (f"{SHARDING}/test_lease_client.py",),
        is_async=True,
    ),
    Mutant(
        "a renewal counts from its response",
        "sharding/member.py",
        "own_renewal=lease.renewal, renewed_at=started_at)",
        "own_renewal=lease.renewal, renewed_at=now)",
        (f"{SHARDING}/test_member.py",),
    ),
    Mutant(
        "a member that did not renew keeps its clusters",
        "sharding/member.py",
        "if self.state.resumed_at is not None and self.is_fenced(now):",
        "if False:",
        (f"{SHARDING}/test_member.py",),
    ),
    Mutant(
        "a silent member is evicted before its subscribers have stopped",
        "sharding/member.py",
        "            return since + self._timing.evict_after_s\n",
        "            return since + self._timing.fence_after_s\n",
        (f"{SHARDING}/test_member.py",),
    ),
    Mutant(
        "a view follows each change of the members at once",
        "sharding/member.py",
        "if not candidates.members or now < candidates.since + self._timing.debounce_s:",
        "if not candidates.members:",
        (f"{SHARDING}/test_member.py",),
    ),
    Mutant(
        "a cluster is engaged before the credentials of its former owner are revoked",
        "sharding/credential_fence.py",
        "return any(each.decide(key).state is KeyOwnership.OWNED for each in self._cleared)",
        "return True",
        (f"{SHARDING}/test_credential_fence.py",),
    ),
    Mutant(
        "singleton work is granted to two subscribers",
        "sharding/singletons.py",
        "if holder is not None and holder.subscriber != subscriber:",
        "if False:",
        (f"{SHARDING}/test_singletons.py",),
    ),
)
