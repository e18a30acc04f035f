//go:build !linux

package discovery

import "time"

// boottime is known on Linux only.
func boottime() time.Duration { return 0 }
