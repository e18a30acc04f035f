"""Keeps the garbage collector from examining the collected tests, as a pytest plugin for all tests.

Each worker collects thousands of tests, which live until it ends: without this, a third of the time that this takes is
that of the garbage collector.
"""

import gc

import pytest

gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()
