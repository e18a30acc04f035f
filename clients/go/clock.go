package discovery

import "time"

// clock counts the time since it was made, including that for which the machine was suspended where that is known.
//
// It follows the time of testing/synctest as well, which the machine's own clock does not.
type clock struct {
	made   time.Time
	booted time.Duration
}

func newClock() clock { return clock{made: time.Now(), booted: boottime()} }

func (c clock) now() time.Duration { return max(time.Since(c.made), boottime()-c.booted) }
