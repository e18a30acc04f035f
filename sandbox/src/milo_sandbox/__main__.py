"""Runs `milo-discoveryd sandbox` as `python -m milo_sandbox`."""

from milo_sandbox.commands import sandbox

sandbox(prog_name="python -m milo_sandbox")
