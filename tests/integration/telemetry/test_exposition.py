"""Metrics in Prometheus' text format, as the library that others parse it with reads it."""

import os

from prometheus_client.parser import text_string_to_metric_families

from milo_discoveryd.telemetry.exposition import Family, ProcessCollector, Registry, counter, encode, gauge, histogram

HOSTILE = 'a"b\\c\nd{}é,=\\n'


def read(registry: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(encode(registry.collect()).decode())
        for sample in family.samples
    }


def test_counters_and_gauges_are_read_as_they_were_set() -> None:
    registry = Registry()
    calls = counter("calls", "Calls.", ("method", "code"), registry=registry)
    calls.labels("Get", "OK").inc()
    calls.labels("Get", "OK").inc()
    calls.labels("Get", "Internal")
    gauge("up", "Whether.", registry=registry).labels().set(0.25)
    gauge("tasks", "How many.", registry=registry).labels().set_function(lambda: 7)
    counter("resets", "Never happened.", registry=registry)
    assert read(registry) == {
        ("calls_total", (("code", "OK"), ("method", "Get"))): 2,
        ("calls_total", (("code", "Internal"), ("method", "Get"))): 0,
        ("up", ()): 0.25,
        ("tasks", ()): 7,
        ("resets_total", ()): 0,
    }
    assert registry.get_sample_value("calls_total", {"method": "Get", "code": "OK"}) == 2
    assert registry.get_sample_value("calls_total", {"method": "Put", "code": "OK"}) is None


def test_label_values_and_help_texts_are_escaped() -> None:
    registry = Registry()
    gauge("info", HOSTILE, ("name",), registry=registry).labels(HOSTILE).set(1)
    assert read(registry) == {("info", (("name", HOSTILE),)): 1}
    [family] = text_string_to_metric_families(encode(registry.collect()).decode())
    assert family.documentation == HOSTILE


def test_histogram_counts_each_value_in_every_bucket_that_covers_it() -> None:
    registry = Registry()
    seconds = histogram("seconds", "How long.", ("method",), buckets=(0.1, 1.0), registry=registry)
    for value in (0.05, 0.1, 0.5, 30.0):
        seconds.labels("Get").observe(value)
    method = ("method", "Get")
    assert read(registry) == {
        ("seconds_bucket", (("le", "0.1"), method)): 2,
        ("seconds_bucket", (("le", "1.0"), method)): 3,
        ("seconds_bucket", (("le", "+Inf"), method)): 4,
        ("seconds_count", (method,)): 4,
        ("seconds_sum", (method,)): 0.05 + 0.1 + 0.5 + 30.0,
    }


def test_metric_without_series_still_has_its_help_and_type() -> None:
    assert encode([Family("gauge", "idle", "Nothing yet.", labels=("a",))]) == (
        b"# HELP idle Nothing yet.\n# TYPE idle gauge\n"
    )


def test_process_metrics_are_those_of_this_process() -> None:
    registry = Registry()
    registry.register(ProcessCollector())
    cpu_s = registry.get_sample_value("process_cpu_seconds_total")
    assert cpu_s is not None
    assert abs(cpu_s - sum(os.times()[:2])) < 5
    for name in ("virtual_memory_bytes", "resident_memory_bytes", "start_time_seconds", "open_fds", "max_fds"):
        assert (registry.get_sample_value(f"process_{name}") or 0) > 0
