"""The daemon with a timer on its event loop. `python -m bench.loop_blocking run …` is `milo-discoveryd run …`.

On SIGRTMIN+1 it prints the duration of the longest callback since the previous signal, in CPU time of the loop's
thread, which other processes do not affect.
"""

import runpy
import signal
import sys
import time
from asyncio import events

SAYS = "loop blocked for "
"""The prefix of the printed line."""


class Longest:
    def __init__(self) -> None:
        self._took_s = 0.0

    def watch(self) -> None:
        run = events.Handle._run

        def clocked(handle: events.Handle) -> None:
            began = time.thread_time()
            run(handle)
            self._took_s = max(self._took_s, time.thread_time() - began)

        events.Handle._run = clocked  # type: ignore[method-assign]

    def say(self, *_: object) -> None:
        sys.stdout.write(f"{SAYS}{self._took_s}\n")
        sys.stdout.flush()
        self._took_s = 0.0


if __name__ == "__main__":
    longest = Longest()
    longest.watch()
    signal.signal(signal.SIGRTMIN + 1, longest.say)
    runpy.run_module("milo_discoveryd", run_name="__main__")
