"""Checks of the functions that an author passes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from milo_kube.user_code import not_an_exception

T = TypeVar("T")


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call of the function, or of the callable object, returns a coroutine."""
    return any(map(inspect.iscoroutinefunction, (function, getattr(type(function), "__call__", None))))  # noqa: B004


def call_in_thread(function: Callable[[T], Any], argument: T) -> Any:
    """Call a plain function, whose result an event loop awaits. Before Python 3.13, it would wait forever for a
    StopIteration, as `next` raises it."""
    try:
        return function(argument)
    except StopIteration as error:
        raise RuntimeError("the function raised StopIteration") from error
    except (Exception, KeyboardInterrupt, asyncio.CancelledError):  # the last of `request.wait`
        raise
    except BaseException as error:  # noqa: BLE001  (the author's code)
        raise not_an_exception(error) from None


def check_reconciler(function: Callable[..., Any]) -> None:
    """Raise TypeError unless the function can be called with a request, as a reconciler."""
    check_called_with(function, "a reconciler", "request")


def check_plain(function: Callable[..., Any], role: str, parameter: str) -> None:
    """Raise TypeError unless the function is plain (not async) and takes one parameter."""
    _check(function, role, parameter)
    if is_async(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{_name(function)} is async: {role} must be a plain function")


def check_called_with(function: Callable[..., Any], role: str, parameter: str) -> None:
    """Raise TypeError unless the function, plain or async, takes one parameter."""
    _check(function, role, parameter)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{_name(function)} is a generator: {role} returns instead of yielding")


def check_async(function: Callable[..., Any], role: str, *parameters: str) -> None:
    """Raise TypeError unless the function is async and takes these parameters."""
    _check(function, role, *parameters)
    if not is_async(function):
        raise TypeError(f"{_name(function)} is not async: {role} must be an async function")


def _check(function: Callable[..., Any], role: str, *parameters: str) -> None:
    if not callable(function):
        raise TypeError(f"{function!r} cannot be {role}, because it is not callable")
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError as error:
        arguments = f"one argument, {', '.join(parameters)}" if parameters else "no arguments"
        raise TypeError(f"{_name(function)} cannot be {role}, which is called with {arguments}: {error}") from None
    except ValueError:
        pass  # A builtin may have no signature to check.


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
