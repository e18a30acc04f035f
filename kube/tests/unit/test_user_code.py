"""Calls of a user's functions."""

import pytest

from milo_kube.failure_log import raised_at
from milo_kube.user_code import call


class Panic(BaseException):
    """What an extension in Rust raises."""


def fail(error: BaseException) -> None:
    raise error


def test_result_of_a_function_is_returned() -> None:
    assert call(max, 1, 2, key=lambda number: -number) == 1


@pytest.mark.parametrize("error", [ValueError("no number"), KeyboardInterrupt()], ids=repr)
def test_exception_and_interrupt_are_raised_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        call(fail, error)
    assert raised.value is error


def test_what_is_no_exception_is_raised_as_one_from_the_same_line() -> None:
    with pytest.raises(RuntimeError, match="Panic: out of range") as raised:
        call(fail, Panic("out of range"))
    assert raised_at(raised.value) == (fail.__code__, fail.__code__.co_firstlineno + 1)
