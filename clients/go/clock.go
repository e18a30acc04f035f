package discovery

import "time"

// clock counts the time since it was made. It includes the time for which the machine was suspended, on platforms that
// report it.
//
// It also follows the fake time of testing/synctest, which the clock of the machine does not.
type clock struct {
	made   time.Time
	booted time.Duration
}

func newClock() clock { return clock{made: time.Now(), booted: boottime()} }

func (c clock) now() time.Duration { return max(time.Since(c.made), boottime()-c.booted) }
