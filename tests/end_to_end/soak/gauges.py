"""A daemon's use of resources over time, from its metrics and from the kernel's memory accounting."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

EVERY_S = 5.0
_MIB = float(1 << 20)
_OWN = ("RssAnon:", "VmSwap:")


@dataclass(frozen=True)
class Sample:
    at: float
    memory_mib: float
    """Memory without mapped files, whose pages the kernel evicts and reads again at will."""
    resident_mib: float
    """Memory with mapped files."""
    files: int
    tasks: int


@dataclass(frozen=True)
class Slope:
    """The use of one resource over time."""

    an_hour: float
    first: float
    last: float
    most: float


@dataclass
class Gauges:
    samples: list[Sample] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    """The values of the latest scrape, by metric name and label values."""

    async def follow(self, url: str, pid: int) -> None:
        """Sample until canceled."""
        status = Path(f"/proc/{pid}/status")
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{url}/metrics") as answer:
                    self.take(await answer.text(), status.read_text(), time.monotonic())
                await asyncio.sleep(EVERY_S)

    def take(self, page: str, status: str, now: float) -> None:
        self.last = {
            sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }
        self.samples.append(
            Sample(
                now,
                own_mib(status),
                self.last["process_resident_memory_bytes"] / _MIB,
                int(self.last["process_open_fds"]),
                int(self.last["milo_discoveryd_asyncio_tasks"]),
            )
        )

    def warm(self, share: float = 0.5) -> list[Sample]:
        """Return the samples without the first part of the time, in which caches fill."""
        first, last = self.samples[0].at, self.samples[-1].at
        return [sample for sample in self.samples if sample.at >= first + share * (last - first)]

    def slope(self, of: str) -> float:
        """Return the growth per hour, over the warm part."""
        warm = self.warm()
        if len(warm) < 2:
            return 0.0
        line = linear_regression([sample.at for sample in warm], [getattr(sample, of) for sample in warm])
        return line.slope * 3600.0

    def ends(self, of: str) -> tuple[float, float, float]:
        """Return the medians of the first and the last tenth of the warm part, and the maximum."""
        values = [getattr(sample, of) for sample in self.warm()]
        tenth = max(1, len(values) // 10)
        return median(values[:tenth]), median(values[-tenth:]), max(values)

    def of(self, what: str) -> Slope:
        return Slope(self.slope(what), *self.ends(what))

    def slopes(self) -> dict[str, Slope]:
        return {what: self.of(what) for what in ("memory_mib", "resident_mib", "files", "tasks")}


def own_mib(status: str) -> float:
    """Return the anonymous memory of a process in MiB, from its `/proc/PID/status`."""
    lines = (line.split() for line in status.splitlines())
    return sum(int(words[1]) for words in lines if words and words[0] in _OWN) / 1024
