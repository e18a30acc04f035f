package session

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "go.miloapis.com/discovery/v1"
)

const (
	renewalInterval = 3 * time.Second
	renewalTimeout  = 3 * time.Second
	shortestRenewal = 200 * time.Millisecond
)

// Ownership is the deadline of a sharded daemon's ownership of its clusters.
//
// A daemon that is killed or stopped cannot report that it lost its clusters, and another daemon of its shard group
// engages them. So a subscriber requests the remaining time of the ownership, and stops its work when it elapses
// without a new response. Times are those of a clock that also advances while the machine is suspended. The zero value
// is the ownership of a daemon that is not sharded, which never expires.
type Ownership struct {
	sharded bool
	until   time.Duration
}

// Share records that the daemon shares the clusters with other daemons.
func (o *Ownership) Share() { o.sharded = true }

// Sharded reports whether the daemon is known to share the clusters with other daemons.
func (o *Ownership) Sharded() bool { return o.sharded }

// Held reports whether the daemon owns its clusters.
func (o *Ownership) Held(now time.Duration) bool { return !o.sharded || now < o.until }

// Renewed applies a response. Its duration counts from the request, because the response may have been delayed.
func (o *Ownership) Renewed(response *pb.RenewOwnershipResponse, asked time.Duration) {
	o.sharded = response.GetSharded()
	o.until = max(o.until, Expiry(response.GetValidFor(), asked))
}

// Expiry returns the time that is validFor after asked, the time of the request. A duration that is missing or invalid
// counts as zero.
func Expiry(validFor *durationpb.Duration, asked time.Duration) time.Duration {
	if !validFor.IsValid() {
		return asked
	}
	return asked + min(validFor.AsDuration(), math.MaxInt64-asked)
}

// NextRenewal returns the delay before the next renewal; 0 if ownership that was held has expired. The interval gets
// shorter towards the deadline, because the daemon may renew its own Lease late.
func (o *Ownership) NextRenewal(now time.Duration, wasHeld bool) time.Duration {
	switch left := o.until - now; {
	case left > 0:
		return min(renewalInterval, max(left/2, min(left, shortestRenewal)))
	case wasHeld:
		return 0
	default:
		return renewalInterval / 3
	}
}

// Timeout returns the timeout of a renewal: not longer than the remaining ownership, if any remains.
func (o *Ownership) Timeout(now time.Duration) time.Duration {
	if left := o.until - now; left > 0 {
		return min(renewalTimeout, left)
	}
	return renewalTimeout
}
