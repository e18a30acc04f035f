"""The cost of rules: the fan-out to subscribers under ten rules, beside the same without rules.

Each subscriber uses one of ten listeners. With rules, each listener has a rule that covers all clusters by a different
selector, so the same events are sent, and no result can be shared between rules.

Live: the changes are made while all subscribers are connected. Caught up: all subscribers resume at once from before
the changes, so that work that is shared without rules is done once per rule.
"""

import itertools
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path

from bench.daemon import daemon
from bench.milo import Milo
from bench.setting import Samples, Setting
from bench.subscribers import Subscriber, opened, synced, together

RULES = 10
_LIVES = 3
"""Rounds per daemon; one takes half a second, which other load may double."""
_MARKS = itertools.count(1)
"""Distinct label values, so that each write is a change."""


async def measure(setting: Setting) -> Samples:
    rounds, changes = setting.scale.fanout_rounds, min(setting.scale.fanout_changes, setting.scale.clusters)
    each = max(1, max(setting.scale.subscribers) // RULES)
    sent = changes * each * RULES
    live_s: dict[bool, list[float]] = {False: [], True: []}
    caught_up_s: dict[bool, list[float]] = {False: [], True: []}
    async with setting.milo(setting.scale.clusters) as milo:
        for _ in range(rounds):
            for ruled in (False, True):
                config = _config(setting.directory, ruled=ruled)
                async with daemon(milo.access.kubeconfig, setting.directory, config=config, listens=False):
                    fans = Fans(milo, [_address(setting.directory, number) for number in range(RULES)], each, changes)
                    await fans.live(setting.scale.fanout_burst)  # warm-up, for what is done only once
                    live_s[ruled] += [await fans.live(setting.scale.fanout_burst) for _ in range(_LIVES)]
                    caught_up_s[ruled].append(await fans.caught_up(setting.scale.fanout_burst))
    return {
        "rights.events_per_s": [sent / took_s for took_s in live_s[True]],
        "rights.fanout_ratio": [one / other for one, other in zip(live_s[False], live_s[True], strict=True)],
        "rights.caught_up_events_per_s": [sent / took_s for took_s in caught_up_s[True]],
        "rights.caught_up_ratio": [
            one / other for one, other in zip(caught_up_s[False], caught_up_s[True], strict=True)
        ],
    }


class Fans:
    """Subscribers at each address."""

    def __init__(self, milo: Milo, addresses: list[str], each: int, changes: int) -> None:
        self._milo = milo
        self._addresses = addresses
        self._each = each
        self._changes = changes

    async def live(self, burst: int) -> float:
        """Return the time until all connected subscribers have all changes."""
        async with AsyncExitStack() as stack:
            present: list[Subscriber] = []
            for address in self._addresses:
                present += await stack.enter_async_context(synced(address, self._each))
            began = time.perf_counter()
            await self._made(present, burst)
            return time.perf_counter() - began

    async def caught_up(self, burst: int) -> float:
        """Return the time until all resuming subscribers have all changes."""
        async with AsyncExitStack() as stack:
            present: list[Subscriber] = []
            for address in self._addresses:
                present += await stack.enter_async_context(synced(address, 1))
            left_at = [subscriber.revision for subscriber in present]
            await self._made(present, burst)
            began = time.perf_counter()
            back: list[Subscriber] = []
            for address, revision in zip(self._addresses, left_at, strict=True):
                back += await stack.enter_async_context(opened(address, self._each, resume=revision))
            await together([subscriber.until(self._changes) for subscriber in back])
            return time.perf_counter() - began

    async def _made(self, present: list[Subscriber], burst: int) -> None:
        made = self._milo.burst(0, self._changes, burst, str(next(_MARKS)))
        await together([made, *(subscriber.until(self._changes) for subscriber in present)])


def _address(directory: Path, number: int) -> str:
    return f"unix://{directory}/{'daemon' if number == 0 else f'daemon-{number}'}.sock"


def _config(directory: Path, *, ruled: bool) -> Path:
    """Write the configuration as JSON, which is YAML, and return its path."""
    listen = [{"address": _address(directory, number), "name": f"l{number}"} for number in range(RULES)]
    rights = [
        {"name": f"r{number}", "who": {"listener": f"l{number}"}, "clusters": {"label_selector": f"!not-{number}"}}
        for number in range(RULES)
    ]
    path = directory / "rights.yaml"
    path.write_text(json.dumps({"listen": listen, **({"rights": rights} if ruled else {})}))
    return path
