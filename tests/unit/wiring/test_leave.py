"""`milo-discoveryd leave`, which signals process 1 of the container to hand its clusters over."""

import os
import signal

import pytest
from click.testing import CliRunner

from milo_discoveryd import cli


def test_leave_command_signals_process_1(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *signaled: sent.append(signaled))
    assert CliRunner().invoke(cli.command, ["leave"]).exit_code == 0
    assert sent == [(1, signal.SIGRTMIN)]


def test_leave_command_explains_where_to_run_it_if_process_1_belongs_to_another_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    done = CliRunner().invoke(cli.command, ["leave"])
    assert done.exit_code == 1
    assert "run this command in the daemon's container" in done.output
