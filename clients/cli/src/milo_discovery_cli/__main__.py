"""The command `milo-discovery`, also run by `python -m milo_discovery_cli`."""

import sys

from milo_kube.termination import interrupt_on_sigterm


def main() -> None:
    """Run the command line and exit."""
    interrupt_on_sigterm()
    try:
        from milo_discovery_cli.command_line import main as run  # noqa: PLC0415 - an interrupt during the import is no error

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
