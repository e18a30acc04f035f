"""Imports the tests of a run, for the workers of pytest-xdist, which are forks of the process that imports this."""

import io
import json
import os
from contextlib import redirect_stdout

import kubernetes.aio.client
import kubernetes.client
import pytest

for client in (kubernetes.client, kubernetes.aio.client):
    client.CoreV1Api  # noqa: B018 - its modules are imported at the first use, which takes a second

with redirect_stdout(io.StringIO()):
    pytest.main([*json.loads(os.environ.pop("COLLECTED_TESTS")), "-n0", "--collect-only", "-qq"])
