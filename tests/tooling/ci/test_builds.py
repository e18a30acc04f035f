"""Builds of servers report their progress."""

import os
from pathlib import Path

import pytest

from tests.end_to_end.real import builds

GO = """#!/bin/sh
echo k8s.io/large >&2
read -r _ <"$0.finish"
touch "$7"
"""


def test_build_reports_its_progress_while_the_compiler_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    go.write_text(GO)
    go.chmod(0o755)
    finish = tmp_path / "go.finish"
    os.mkfifo(finish)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(builds, "_SAY_EVERY_S", 0.01)

    def say(line: str) -> None:
        if "1 packages compiled, now k8s.io/large" in line and finish.exists():
            finish.write_text("\n")
            finish.unlink()

    assert builds.obtain(builds.ETCD, say).exists()
    assert not finish.exists()
