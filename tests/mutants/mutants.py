"""Bugs as people make them. Each is a small change of one module, and must not get past the tests named with it."""

from dataclasses import dataclass

REGISTRY = ("tests/registry",)
CURSORS = ("tests/registry/test_cursor.py",)
INTAKE = ("tests/registry/test_intake.py",)
REFLECT = ("tests/reflect",)
SCOPES = ("tests/rights/test_scope.py",)
SEALS = ("tests/server/test_revision.py", "tests/server/test_listings.py")
ROTATION = ("tests/server/test_rotation.py",)
GUARD = ("tests/registry/test_guard.py",)
GUARDED = ("tests/registry/test_intake_guarded.py",)
IMAGE = ("tests/memory/test_image.py",)
PROBES = ("tests/connectivity/test_schedule.py",)
LEASES = ("tests/kubeconfigs/test_lease.py",)
CREDENTIALS = ("tests/deterministic/test_credentials.py",)
MODES = ("tests/modes/test_names.py", "tests/modes/test_project.py")
TOKENS = ("tests/identity/test_token_review.py",)
VERDICTS = ("tests/identity/test_verdicts.py",)
NAMES = ("tests/identity/test_names.py",)
PLUGINS = ("tests/credentials/test_kubeconfig.py",)


GONE = "from milo_discoveryd.reflect.deletions import Gone"


@dataclass(frozen=True)
class Mutant:
    name: str
    module: str
    was: str
    """Stands in the module once."""
    becomes: str
    caught_by: tuple[str, ...]
    imports: str = ""
    is_async: bool = False
    """So are the tests that catch it."""


MUTANTS = (
    Mutant(
        "two events swap places",
        "registry/log.py",
        "sorted(told.values(), key=lambda pair: pair[0].revision)",
        "sorted(told.values(), key=lambda pair: -pair[0].revision)",
        CURSORS,
    ),
    Mutant(
        "an event is dropped at the end of a part",
        "registry/log.py",
        "reached = self._revisions[place]",
        "reached = self._revisions[min(place + 1, len(self._revisions) - 1)]",
        CURSORS,
    ),
    Mutant(
        "what is new is told as an update",
        "registry/log.py",
        "if view is None or view.cluster.incarnation > revision:",
        "if view is None:",
        CURSORS,
    ),
    Mutant(
        "a part that is read in one go is said to reach further than it does",
        "registry/log.py",
        "else Frames(frames), reached)",
        "else Frames(frames), min(reached + 1, self.head))",
        CURSORS,
    ),
    Mutant(
        "what comes into a filter is told as an update",
        "registry/log.py",
        "if view is None or (before is not None and matches(before) is not is_shown):",
        "if view is None:",
        CURSORS,
    ),
    Mutant(
        "who is told a part is given all that others were told",
        "registry/log.py",
        "            else:\n                is_whole = False\n",
        "",
        REGISTRY,
    ),
    Mutant(
        "a part of a snapshot is given to who wants something else",
        "registry/log.py",
        "key = (start, wanted.fingerprint, overhead)",
        'key = (start, "", overhead)',
        REGISTRY,
    ),
    Mutant(
        "a part passes over what moved on beyond it",
        "registry/log.py",
        "if reached < self.head:",
        "if False:",
        CURSORS,
    ),
    Mutant(
        "a heartbeat overtakes events",
        "registry/cursor.py",
        "return Batch(found.frames, revision)",
        "return Batch(found.frames, self._log.head)",
        CURSORS,
    ),
    Mutant(
        "a resume is off by one",
        "registry/log.py",
        "bisect_right(self._revisions, revision)",
        "bisect_right(self._revisions, revision + 1)",
        CURSORS,
    ),
    Mutant(
        "a revision of the future is accepted",
        "registry/log.py",
        "return self._floor <= revision <= self.head",
        "return self._floor <= revision",
        CURSORS,
    ),
    Mutant(
        "what was forgotten is read from all the same",
        "registry/log.py",
        "self._floor = max(self._floor, until)",
        "pass",
        CURSORS,
    ),
    Mutant(
        "leaving a filter is not told",
        "registry/log.py",
        "if before is not None and (now is None or now.incarnation != before.incarnation):",
        "if before is not None and entry.view is None:",
        CURSORS,
    ),
    Mutant(
        "coalescing loses an end",
        "registry/log.py",
        "if before is not None and (now is None or now.incarnation != before.incarnation):",
        "if before is not None and now is None:",
        CURSORS,
    ),
    Mutant(
        "labels of before are not remembered",
        "registry/log.py",
        '            self._remember(entry, now, None, "")\n',
        "",
        CURSORS,
    ),
    Mutant(
        "a snapshot that is shared has lost its past",
        "registry/log.py",
        "kept is None or kept.revision < self._floor or",
        "kept is None or",
        CURSORS,
    ),
    Mutant(
        "a second snapshot does not say that it begins anew",
        "registry/cursor.py",
        "reset=start == 0",
        "reset=False",
        CURSORS,
    ),
    Mutant(
        "a UID is ignored",
        "registry/registry.py",
        'if record is None or seen.uid in ("", record.uid):',
        "if True:",
        ("tests/registry/test_registry.py",),
    ),
    Mutant(
        "something older replaces something newer",
        "registry/registry.py",
        "elif not consistent and self._is_outdated(item):",
        "elif False:",
        ("tests/registry/test_registry.py",),
    ),
    Mutant(
        "the end of another incarnation is taken for this one's",
        "registry/registry.py",
        "record is None or record.uid != gone.uid or",
        "record is None or",
        ("tests/registry/test_registry.py",),
    ),
    Mutant(
        "a malformed object ends its cluster",
        "registry/registry.py",
        "return ()  # the cluster is kept as it last was",
        "return self._end(record, DisengageReason.NOT_READY, seen.message, now)",
        ("tests/registry/test_registry.py",),
    ),
    Mutant(
        "a grace is prolonged by each word",
        "registry/registry.py",
        "if name not in self._held:",
        "if True:",
        ("tests/registry/test_registry_grace.py",),
    ),
    Mutant(
        "a grace is not ended by being ready again",
        "registry/registry.py",
        "if standing is not Standing.NOT_READY:",
        "if False:",
        ("tests/registry/test_registry_grace.py",),
    ),
    Mutant(
        "a part of a list is applied",
        "registry/intake.py",
        "        if not self.synced:\n            changed,",
        "        if self._staged:\n            changed,",
        INTAKE,
    ),
    Mutant(
        "a list that was given up is finished by the next",
        "registry/intake.py",
        "                self._listed, self._staged = set(), {}\n                if not self.synced:",
        "                if not self.synced:",
        INTAKE,
    ),
    Mutant(
        "an empty list ends everything without asking",
        "registry/intake.py",
        "                    self._suspicions.suspect(name, uid, now)\n            case Held():",
        "                    self._registry.commit([Gone(name, uid)], Moment(now, now))\n            case Held():",
        INTAKE,
        GONE,
    ),
    Mutant(
        "a report of a deletion is believed without asking",
        "registry/intake.py",
        "            self._suspicions.suspect(name, record.uid, now.steady)",
        "            self._registry.commit([Gone(name, record.uid)], now)",
        INTAKE,
        GONE,
    ),
    Mutant(
        "a repetition settles what is being asked about",
        "registry/intake.py",
        "if self._registry.is_news(observation):",
        "if True:",
        INTAKE,
    ),
    Mutant(
        "no answer is taken for an answer",
        "reflect/deletions.py",
        "        if isinstance(answer, Unanswered):\n",
        "        if isinstance(answer, Unanswered):\n            return Gone(question.name, suspicion.uid)\n",
        ("tests/reflect/test_deletions.py",),
    ),
    Mutant(
        "a late answer settles a later question",
        "reflect/deletions.py",
        "if suspicion is None or suspicion.ticket != question.ticket:",
        "if suspicion is None:",
        ("tests/reflect/test_deletions.py",),
    ),
    Mutant(
        "as many are asked about as there are",
        "reflect/deletions.py",
        "self._due[0][0] <= now and len(self._asked) < self._at_once:",
        "self._due[0][0] <= now:",
        ("tests/reflect/test_deletions.py",),
    ),
    Mutant(
        "waits never begin anew",
        "reflect/machine.py",
        "            self._failures = 0\n        if age_s",
        "            pass\n        if age_s",
        REFLECT,
    ),
    Mutant(
        "a cut list counts as complete",
        "reflect/machine.py",
        'return self.failed(Failure("ListCut", "the server ended the list before its end mark"), now)',
        'return [self._list_ended("1", now)]',
        REFLECT,
    ),
    Mutant(
        "a bookmark does not move the version",
        "reflect/machine.py",
        "                self._bookmarks_seen = True\n                self._at(version)",
        "                self._bookmarks_seen = True",
        REFLECT,
    ),
    Mutant(
        "a version that is too old is asked for again",
        "reflect/machine.py",
        "_VERSION_REFUSED = frozenset({410, 504})",
        "_VERSION_REFUSED = frozenset({504})",
        REFLECT,
    ),
    Mutant(
        "what follows an event that ended the watch is read on",
        "reflect/machine.py",
        "                    break  # an earlier event ended the watch",
        "                    self.state = Watching('1', now, now, 1)",
        REFLECT,
    ),
    Mutant(
        "silence from a version of the future is borne for ever",
        "reflect/machine.py",
        "if self.state.proven or not self._bookmarks_seen:",
        "if True:",
        REFLECT,
    ),
    Mutant(
        "a body without items is an empty list",
        "reflect/wire.py",
        "    items: list[msgspec.Raw] | None\n",
        "    items: list[msgspec.Raw] | None = None\n",
        ("tests/reflect/test_wire.py",),
    ),
    Mutant(
        "a line that is cut in two is two lines",
        "reflect/wire.py",
        "        self._rest += first\n",
        "        self._rest = bytearray(first)\n",
        ("tests/reflect/test_lines.py",),
    ),
    Mutant(
        "a name may end with a newline",
        "modes/reading.py",
        "not pattern.fullmatch(name)",
        "not re.match(pattern.pattern + '$', name)",
        MODES,
    ),
    Mutant(
        "an object that is being deleted is taken for gone",
        "modes/project.py",
        'if condition is None or condition.status != "True":',
        'if condition is None or condition.status != "True" or metadata.deletionTimestamp:',
        MODES,
    ),
    Mutant(
        "what may not be seen is shown to who asks for it",
        "rights/scope.py",
        "return self.scope.matches if self.asked.is_everything else every([self.scope.matches, self.asked.matches])",
        "return self.scope.matches if self.asked.is_everything else self.asked.matches",
        SCOPES,
    ),
    Mutant(
        "an end shows what could not be seen",
        "registry/log.py",
        "if past is not None and wanted.shows(past.cluster):",
        "if past is not None:",
        ("tests/registry/test_log_hidden.py",),
    ),
    Mutant(
        "the last rule that is met counts",
        "rights/rights.py",
        "for rule in self.rules if",
        "for rule in reversed(self.rules) if",
        ("tests/rights/test_rights.py",),
    ),
    Mutant(
        "who has one of the things that a rule asks for meets it",
        "rights/who.py",
        "            and (not self.uids or caller.uid in self.uids)",
        "            and (not self.uids or caller.uid in self.uids or bool(self.listeners))",
        ("tests/rights/test_who.py",),
    ),
    Mutant(
        "rights that end are not told",
        "registry/turn.py",
        "            if was and not now:",
        "            if False:",
        ("tests/registry/test_turn.py",),
    ),
    Mutant(
        "rights that change again before all was told are told wrongly",
        "registry/turn.py",
        "knew = ((self.place, self.wanted), *(each for each in self.knew if each[0] > self.place))",
        "knew = self.knew",
        ("tests/registry/test_turn.py",),
    ),
    Mutant(
        "kubeconfigs go on being renewed for what was taken away",
        "server/rotation.py",
        "return cluster if cluster is not None and self._shown.matches(cluster) else None",
        "return cluster",
        ROTATION,
    ),
    Mutant(
        "kubeconfigs are asked for before they are counted",
        "server/rotation.py",
        "self._to is None or not self._pay(cluster.target.name)",
        "self._to is None",
        ROTATION,
    ),
    Mutant(
        "the second page goes by the rights of the first",
        "server/listings.py",
        "clusters=tuple(filter(still, page.clusters))",
        "clusters=page.clusters",
        ("tests/server/test_listings.py",),
    ),
    Mutant(
        "any seal will do",
        "server/revision.py",
        "return text if whole else None",
        "return text",
        SEALS,
    ),
    Mutant(
        "a seal is good for everybody",
        "server/revision.py",
        r'f"{text}\0{holder}".encode()',
        "text.encode()",
        SEALS,
    ),
    Mutant(
        "a name that may not be seen is told from one that is not there",
        "server/sight.py",
        "if record is None or scope.is_everything:",
        "if True:",
        ("tests/server/test_sight.py",),
    ),
    Mutant(
        "more than half is not too many",
        "registry/guard.py",
        "return 2 * missing > engaged or missing",
        "return missing",
        GUARD,
    ),
    Mutant(
        "a second list is believed however soon it comes",
        "registry/guard.py",
        "if held is not None and now >= verify_at:",
        "if held is not None:",
        GUARD,
    ),
    Mutant(
        "versions that went back are forgotten by the next list",
        "registry/guard.py",
        "if versions_went_back or (held is not None and held.verify_at is None):",
        "if versions_went_back:",
        GUARD,
    ),
    Mutant(
        "another server is listened to",
        "registry/intake.py",
        "self._is_foreign = isinstance(ruling, Held) and ruling.is_foreign",
        "self._is_foreign = False",
        GUARDED,
    ),
    Mutant(
        "a fleet made anew is believed at once",
        "registry/intake.py",
        "                engaged + replaced,\n",
        "                engaged,\n",
        GUARDED,
    ),
    Mutant(
        "what is remembered counts as known once any list came",
        "registry/intake.py",
        "True, self.is_remembered and self.held is not None",
        "True, False",
        GUARDED,
    ),
    Mutant(
        "what can't be read is taken for an answer",
        "reflect/deletions.py",
        "if isinstance(answer, Found) and _is_unreadable(answer.observation, suspicion.uid):",
        "if False:",
        ("tests/reflect/test_deletions.py",),
    ),
    Mutant(
        "what is held is asked about all the same",
        "reflect/deletions.py",
        "suspicion.is_held, suspicion.problem = True, why",
        "heapq.heappush(self._due, (now, suspicion.ticket, name))",
        ("tests/reflect/test_deletions.py",),
    ),
    Mutant(
        "an event may drip for ever",
        "reflect/machine.py",
        "elif events or self._line_due_at == math.inf:",
        "else:",
        REFLECT,
    ),
    Mutant(
        "a torn state file is accepted",
        "memory/image.py",
        "if words[1] != _checksum(body):",
        "if False:",
        IMAGE,
    ),
    Mutant(
        "another source's clusters are remembered as ours",
        "memory/image.py",
        "if image.origin != origin:",
        "if False:",
        IMAGE,
    ),
    Mutant(
        "a cluster is unreachable after one failure",
        "connectivity/schedule.py",
        "if now.steady - watched.failing_since < self._policy.unreachable_after_s:",
        "if False:",
        PROBES,
    ),
    Mutant(
        "a host that is down is probed for each of its clusters",
        "connectivity/schedule.py",
        "if host.due and not host.has_scout:",
        "if host.due:",
        PROBES,
    ),
    Mutant(
        "an ended credential is handed out",
        "kubeconfigs/lease.py",
        "if held is None or held.left_s(now) <= margin_s(held.minted.life_s):",
        "if held is None:",
        LEASES,
    ),
    Mutant(
        "a clock that is set back lets a credential live longer",
        "kubeconfigs/lease.py",
        "return min(self.minted.expires_at - now.wall, self.until - now.steady)",
        "return self.minted.expires_at - now.wall",
        LEASES,
    ),
    Mutant(
        "what has ended is handed out as if it lived",
        "kubeconfigs/lease.py",
        "return min(self.minted.expires_at - now.wall, self.until - now.steady)",
        "return self.minted.life_s",
        CREDENTIALS,
    ),
    Mutant(
        "all clusters are given what was minted for one",
        "kubeconfigs/minter.py",
        "incarnation = 0 if self.source.scope is Scope.IDENTITY else cluster.incarnation",
        "incarnation = 0 if self.source.scope is Scope.IDENTITY else 1",
        CREDENTIALS,
    ),
    Mutant(
        "after a sleep what has ended is replaced when it would have been due",
        "server/rotation.py",
        "if abs(ahead - self._ahead) > JUMP_S:",
        "if False:",
        CREDENTIALS,
    ),
    Mutant(
        "what is unfit for one cluster refuses all",
        "kubeconfigs/issuer.py",
        "return minter.trouble if is_of_all and isinstance(minter.trouble, UnfitError) else None",
        "return minter.trouble if isinstance(minter.trouble, UnfitError) else None",
        CREDENTIALS,
    ),
    Mutant(
        "what an earlier run minted outlives its cluster",
        "kubeconfigs/minter.py",
        "if is_revoked and len(self._revoking) < REVOKING_AT_MOST:",
        "if is_revoked and cluster.incarnation in self._of_cluster and len(self._revoking) < REVOKING_AT_MOST:",
        CREDENTIALS,
    ),
    Mutant(
        "a mint that comes after its cluster's end counts as good",
        "kubeconfigs/minter.py",
        'result = "dropped" if kept.is_dropped else "ok"',
        'result = "ok"',
        ("tests/kubeconfigs/test_issuer.py",),
        is_async=True,
    ),
    Mutant(
        "what a cluster had outlives it",
        "kubeconfigs/minter.py",
        "            self._revoking[(cluster.target.name, cluster.incarnation)] = cluster.target\n",
        "",
        ("tests/kubeconfigs/test_issuer.py",),
        is_async=True,
    ),
    Mutant(
        "a token that an API server doesn't know is let through",
        "identity/token_review.py",
        "if not status.authenticated or not status.user.username:",
        "if not status.user.username:",
        TOKENS,
        is_async=True,
    ),
    Mutant(
        "a token is taken though nobody looked for whom it is",
        "identity/token_review.py",
        "if self._audiences and not set(status.audiences) & set(self._audiences):",
        "if status.audiences and not set(status.audiences) & set(self._audiences):",
        TOKENS,
        is_async=True,
    ),
    Mutant(
        "what was said of a token outlives it",
        "identity/verdicts.py",
        "now + min(ACCEPTED_S, left_s)",
        "now + ACCEPTED_S",
        VERDICTS,
    ),
    Mutant(
        "made-up tokens take the room of good ones",
        "identity/verdicts.py",
        "_add(self._rejected, digest, (verdict, now + REJECTED_S), self._size)",
        "_add(self._accepted, digest, (verdict, now + REJECTED_S), self._size)",
        VERDICTS,
    ),
    Mutant(
        "a DNS name passes for a URI",
        "identity/names.py",
        'return f"dns:{name.value.lower()}"',
        'return f"uri:{name.value.lower()}"',
        NAMES,
    ),
    Mutant(
        "any exec plugin is run",
        "credentials/kubeconfig.py",
        'if spec.command not in self.plugins and "*" not in self.plugins:',
        'if "-" in self.plugins:',
        PLUGINS,
        is_async=True,
    ),
)
