package discovery

import "time"

// clock measures the time since it was created. On Linux, that includes time for which the machine was suspended.
//
// It also follows the fake time of testing/synctest, unlike CLOCK_BOOTTIME.
type clock struct {
	made   time.Time
	booted time.Duration
}

func newClock() clock { return clock{made: time.Now(), booted: boottime()} }

func (c clock) now() time.Duration { return max(time.Since(c.made), boottime()-c.booted) }
