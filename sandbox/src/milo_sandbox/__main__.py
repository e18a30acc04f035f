"""`python -m milo_sandbox`: the same as `milo-discoveryd sandbox`."""

from milo_sandbox.commands import sandbox

sandbox(prog_name="python -m milo_sandbox")
