"""One file for each thing that is measured: a coroutine that is given a setting, and returns figures by key."""
