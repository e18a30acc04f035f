//go:build !linux

package discovery

import "time"

// boottime returns 0: it is supported only on Linux.
func boottime() time.Duration { return 0 }
