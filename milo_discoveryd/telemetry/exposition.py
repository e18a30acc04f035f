"""Counters, gauges and histograms, and Prometheus' text format for them.

The format is a page of specification that does not change any more. The usual library for it imports web servers and
clients of the standard library, 4 MiB and a part of the start that nothing here uses.
"""

import os
import resource
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Sample(NamedTuple):
    suffix: str
    """Behind the name of the family."""
    labels: tuple[tuple[str, str], ...]
    value: float


class Family:
    """A metric as it is collected. `name` is complete: that of a counter ends with `_total`."""

    def __init__(
        self, type_: str, name: str, help_: str, *, labels: Sequence[str] = (), value: float | None = None
    ) -> None:
        self.type = type_
        self.name = name
        self.help = help_
        self.labels = tuple(labels)
        self.samples: list[Sample] = []
        if value is not None:
            self.add((), value)

    def add(self, label_values: Sequence[str], value: float) -> None:
        self.samples.append(Sample("", tuple(zip(self.labels, label_values, strict=True)), value))


class Collector(Protocol):
    def collect(self) -> Iterable[Family]: ...


class Registry:
    def __init__(self) -> None:
        self._collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        self._collectors.append(collector)

    def collect(self) -> Iterator[Family]:
        for collector in self._collectors:
            yield from collector.collect()

    def get_sample_value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """The value of one series; None if there is none."""
        wanted = dict(labels or {})
        for family in self.collect():
            for suffix, found, value in family.samples:
                if family.name + suffix == name and dict(found) == wanted:
                    return value
        return None


class CounterSeries:
    def __init__(self) -> None:
        self._value = 0.0

    def inc(self) -> None:
        self._value += 1

    def read(self) -> Iterator[Sample]:
        yield Sample("", (), self._value)


class GaugeSeries:
    def __init__(self) -> None:
        self._read: Callable[[], float] = lambda: 0.0

    def set(self, value: float) -> None:
        self._read = lambda: value

    def set_function(self, read: Callable[[], float]) -> None:
        self._read = read

    def read(self) -> Iterator[Sample]:
        yield Sample("", (), self._read())


class HistogramSeries:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> Iterator[Sample]:
        count = 0
        for bound, observed in zip((*self._bounds, float("inf")), self._counts, strict=True):
            count += observed
            yield Sample("_bucket", (("le", _number(bound)),), count)
        yield Sample("_count", (), count)
        yield Sample("_sum", (), self._sum)


class _Series(Protocol):
    def read(self) -> Iterator[Sample]: ...


S = TypeVar("S", bound=_Series)


class _Metric(Generic[S]):
    """A series for each combination of label values that was asked for."""

    def __init__(
        self, about: tuple[str, str, str], labels: Sequence[str], make: Callable[[], S], registry: Registry
    ) -> None:
        """`about`: type, name and help."""
        self._about = about
        self._label_names = tuple(labels)
        self._make: Callable[[], S] = make
        self._series: dict[tuple[str, ...], S] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> S:
        series = self._series.get(values)
        if series is None:
            self._series[values] = series = self._make()
        return series

    def collect(self) -> Iterator[Family]:
        family = Family(*self._about, labels=self._label_names)
        for values, series in self._series.items():
            named = tuple(zip(self._label_names, values, strict=True))
            for sample in series.read():
                family.samples.append(Sample(sample.suffix, (*named, *sample.labels), sample.value))
        yield family


def counter(name: str, help_: str, labels: Sequence[str] = (), *, registry: Registry) -> _Metric[CounterSeries]:
    """`name` is without `_total`."""
    return _Metric(("counter", f"{name}_total", help_), labels, CounterSeries, registry)


def gauge(name: str, help_: str, labels: Sequence[str] = (), *, registry: Registry) -> _Metric[GaugeSeries]:
    return _Metric(("gauge", name, help_), labels, GaugeSeries, registry)


def histogram(
    name: str, help_: str, labels: Sequence[str] = (), *, buckets: Sequence[float], registry: Registry
) -> _Metric[HistogramSeries]:
    return _Metric(("histogram", name, help_), labels, lambda: HistogramSeries(buckets), registry)


class ProcessCollector:
    """The metrics that every process has, by their usual names. Linux only; nothing where /proc cannot be read."""

    def __init__(self) -> None:
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def collect(self) -> Iterator[Family]:
        try:
            # Behind the command, which may hold spaces and parentheses.
            parts = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
            booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
            started = float(booted.split()[1]) + int(parts[19]) / self._ticks
            cpu_s = (int(parts[11]) + int(parts[12])) / self._ticks
            virtual, resident = int(parts[20]), int(parts[21]) * self._page
        except (OSError, StopIteration):
            return
        yield Family("gauge", "process_virtual_memory_bytes", "Virtual memory size in bytes.", value=virtual)
        yield Family("gauge", "process_resident_memory_bytes", "Resident memory size in bytes.", value=resident)
        yield Family(
            "gauge", "process_start_time_seconds", "Start time of the process since the Unix epoch.", value=started
        )
        yield Family("counter", "process_cpu_seconds_total", "User and system CPU time in seconds.", value=cpu_s)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield Family("gauge", "process_max_fds", "Maximum number of open file descriptors.", value=soft)
        try:
            yield Family(
                "gauge",
                "process_open_fds",
                "Number of open file descriptors.",
                value=sum(1 for _ in os.scandir("/proc/self/fd")),
            )
        except OSError:
            return  # a process that is closed to others of its user may not list its own


def encode(families: Iterable[Family]) -> bytes:
    """The families as /metrics answers them."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.type}")
        for suffix, labels, value in family.samples:
            shown = ",".join(f'{name}="{_quoted(text)}"' for name, text in labels)
            lines.append(f"{family.name}{suffix}{f'{{{shown}}}' if shown else ''} {_number(value)}")
    return "\n".join([*lines, ""]).encode()


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
