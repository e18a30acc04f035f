"""The command `milo-discovery`, also run by `python -m milo_discovery_cli`."""

import sys


def main() -> None:
    """Run the command line and exit."""
    # ruff: noqa: PLC0415 - an interrupt during an import is no error
    try:
        from milo_kube.termination import interrupt_on_sigterm

        interrupt_on_sigterm()
        from milo_discovery_cli.command_line import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
