"""State files in memory."""

from io import BytesIO

from milo_discoveryd.state_file.encoding import StoredFleet, write


def encode(fleet: StoredFleet) -> bytes:
    """Return the content of the fleet's state file."""
    file = BytesIO()
    write(fleet, file)
    return file.getvalue()
