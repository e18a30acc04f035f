"""`python -m milo_discoveryd.sandbox`: as `milo-discoveryd sandbox`."""

from milo_discoveryd.cli import sandbox

sandbox(prog_name="python -m milo_discoveryd.sandbox")
