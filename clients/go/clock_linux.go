package discovery

import (
	"time"

	"golang.org/x/sys/unix"
)

// boottime returns the time since the machine booted, or 0 if the system call fails.
func boottime() time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano())
}
