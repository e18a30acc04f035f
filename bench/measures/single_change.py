"""CPU time of a single change in each part of the daemon, with one subscriber."""

import json
import signal
from functools import partial
from itertools import count

from bench.setting import Samples, Setting
from bench.writes import Writes, read_by, subscriber
from milo_discovery import DiscoveryClient

_LEGS = "legs "


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    samples: Samples = {}
    marks = count(step=scale.latency_writes)
    async with setting.daemon(scale.clusters, program="bench.clocked") as (milo, daemon):
        for round_number in range(1, scale.rounds + 1):
            async with DiscoveryClient(daemon.address) as client, client.watch() as watch:
                await watch.synced()
                writes = Writes(milo, scale.latency_writes, scale.writes_per_s, scale.clusters, next(marks))
                daemon.signal(signal.SIGRTMIN + 1)
                await read_by(partial(subscriber, watch), writes)
                daemon.signal(signal.SIGRTMIN + 1)
                # The output also contains log lines.
                *_, line = await daemon.wait_for_lines(round_number, beginning=_LEGS)
            legs = {
                leg: seconds / scale.latency_writes * 1e6
                for leg, seconds in json.loads(line.removeprefix(_LEGS)).items()
            }
            for leg, took_us in legs.items():
                samples.setdefault(f"single_change.{leg}_us", []).append(took_us)
            samples.setdefault("single_change.us", []).append(sum(legs.values()))
    return samples
