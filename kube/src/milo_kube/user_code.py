"""Calls of a user's functions, whose errors affect only what they are called for. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def call(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a plain function. Raises its Exceptions, and RuntimeError for anything else that it raises.

    SystemExit and the panic of an extension in Rust would end the process, and CancelledError would silently end the
    task.
    """
    try:
        return function(*arguments, **options)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  (the user's code)
        raise not_an_exception(error) from None


def not_an_exception(error: BaseException) -> RuntimeError:
    """Return the error to raise instead of one that is no Exception, with its traceback."""
    return RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
