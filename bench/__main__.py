"""The command `./dev bench`: runs the named measurements, by default the quick ones, and prints figures."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench import against, bars, report
from bench.commits import commits
from bench.measures import (
    capacity,
    churn,
    cluster_memory,
    commands,
    controller_manager,
    controllers,
    fanout,
    floods,
    go,
    handover,
    herd,
    hostile_clients,
    idle,
    latency,
    listeners,
    log_caches,
    loop_blocking,
    milo_cost,
    objects,
    parts,
    rights,
    rotation,
    sharding,
    shared_objects,
    single_change,
    slow_reader,
    small,
    status_page,
    sync,
)
from bench.milo import real_milo, sandbox_milo
from bench.scale import FULL, QUICK
from bench.setting import Samples, Setting

Measure = Callable[[Setting], Awaitable[Samples]]

MEASURES: dict[str, Measure] = {
    "startup": commands.startup,
    "cli": commands.listing,
    "parts": parts.measure,
    "log_caches": log_caches.measure,
    "cluster_memory": cluster_memory.measure,
    "small": small.measure,
    "sync_1k": sync.small,
    "sync_10k": sync.usual,
    "sync_100k": sync.large,
    "latency": latency.measure,
    "single_change": single_change.measure,
    "fanout": fanout.measure,
    "slow_reader": slow_reader.measure,
    "herd": herd.measure,
    "loop_blocking": loop_blocking.measure,
    "idle": idle.measure,
    "rotation": rotation.measure,
    "rights": rights.measure,
    "listeners": listeners.measure,
    "hostile_clients": hostile_clients.measure,
    "floods": floods.measure,
    "status_page": status_page.measure,
    "capacity": capacity.measure,
    "churn": churn.steady,
    "fleet_50k": churn.crowded,
    "controllers": controllers.measure,
    "tenants": controllers.tenants,
    "objects": objects.measure,
    "shared_objects": shared_objects.measure,
    "handover": handover.measure,
    "go": go.measure,
    "go_memory": go.memory,
    "sharding": sharding.measure,
    "milo_cost": milo_cost.measure,
    "milo": controller_manager.measure,
    "milo_groups": controller_manager.measure_groups,
}
NOT_UNLESS_NAMED = {
    *("capacity", "hostile_clients", "status_page", "churn", "fleet_50k", "floods", "controllers", "go", "sharding"),
    *("go_memory", "shared_objects"),
    *("tenants", "objects", "handover", "milo_cost", "milo", "milo_groups"),
}
"""Measurements that take minutes and run only if they are named."""
ON_REAL_NOT_UNLESS_NAMED = {"sync_100k", "herd", "loop_blocking"}
"""Measurements that take minutes on a real server, since they create many projects, and run there only if named."""
QUICK_ONES = ("startup", "cli", "sync_1k", "latency", "fanout", "slow_reader")

_MISSED = 1


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description="Measure the daemon beside its peers.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"measurements, of {', '.join(MEASURES)}; default: the quick ones"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument(
        "--real", action="store_true", help="on Milo's own API server instead of the sandbox (needs Go)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"small sizes, and lenient limits; exit status {_MISSED} if one is missed",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="duration of churn and fleet_50k  [default: 1; with --quick, 10 s]"
    )
    parser.add_argument(
        "--against",
        metavar="REF",
        help="run the named measurements alternately here and in a checkout of REF, and print the ratios; "
        f"exit status {_MISSED} if the median ratio of a figure is worse by more than {against.TOLERANCE:.0%}%, and "
        "the ranges of its values in the two trees do not overlap",
    )
    parser.add_argument(
        "--pairs", type=int, default=5, metavar="N", help="number of pairs of runs for --against  [default: 5]"
    )
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.names if name not in MEASURES]:
        parser.error(f"unknown measurement: {', '.join(unknown)}; measurements: {', '.join(MEASURES)}")
    for name in {"sharding", "milo_cost"} & set(asked.names):
        if not asked.real:
            parser.error(f"{name} is measured on real API servers: add --real")
    given = controller_manager.MOVED in os.environ
    for name in {"go", "go_memory", "shared_objects", *(() if given else ("milo",))} & set(asked.names):
        if asked.quick:
            parser.error(f"{name} measures Go programs, which --quick does not build: omit --quick")
    if "milo_groups" in asked.names and not given:
        parser.error(f"milo_groups needs the path of a program in {controller_manager.MOVED}: set this variable")
    if asked.against is not None:
        if not asked.names:
            parser.error("--against needs the names of measurements, such as parts")
        options = [*(["--real"] if asked.real else ()), *(["--quick"] if asked.quick else ())]
        runs = against.compare(asked.against, asked.names, options, asked.pairs)
        Console().print(against.table(asked.against, runs))
        worse = against.worse(runs)
        if worse:
            Console().print(f"worse by more than {against.TOLERANCE:.0%}: {', '.join(worse)}")
        return _MISSED if worse else 0
    full = bars.REAL if asked.real else bars.FULL
    scale, held_to = (QUICK, bars.QUICK) if asked.quick else (FULL, full)
    if asked.minutes is not None:
        scale = msgspec.structs.replace(scale, churn_s=60 * asked.minutes)
    left_out = NOT_UNLESS_NAMED | (ON_REAL_NOT_UNLESS_NAMED if asked.real else set())
    usual = QUICK_ONES if asked.quick else [name for name in MEASURES if name not in left_out]
    console = Console()
    samples: Samples = {}
    with tempfile.TemporaryDirectory(prefix="milo-bench-") as directory:
        setting = Setting(scale, Path(directory), real_milo if asked.real else sandbox_milo)
        for name in asked.names or usual:
            found = asyncio.run(run(name, setting))
            console.print(report.table(found, held_to))
            samples |= found
            if asked.json is not None:
                # After each measurement, so that a failure loses none of the earlier figures.
                results = report.results(samples, held_to, scale.name, "real" if asked.real else "sandbox")
                asked.json.write_bytes(report.written(results))
    console.print("built from", ", ".join(f"{commit} ({what})" for what, commit in commits().items()))
    missed = report.missed(report.medians(samples), held_to)
    if missed:
        console.print(f"missed: {', '.join(missed)}")
    return _MISSED if missed and asked.quick else 0


async def run(name: str, setting: Setting) -> Samples:
    measuring = asyncio.current_task()
    assert measuring is not None
    # SIGTERM cancels the measurement, as SIGINT does: a canceled measurement terminates its programs.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    return await MEASURES[name](setting)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
