"""One target under atheris, in a process of its own: libFuzzer exits when it is done."""

import sys

import atheris

with atheris.instrument_imports(include=["milo_discoveryd"]):
    from tests.tooling.fuzz.targets import TARGETS

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()
