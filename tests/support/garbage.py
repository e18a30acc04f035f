"""Keeps the garbage collector from examining the collected tests, as a pytest plugin for all tests.

Each worker collects thousands of tests, which live until it exits: without this, the garbage collector takes a third of
the collection time.
"""

import gc

import pytest


def pytest_configure() -> None:
    gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()
