package discovery

import (
	"cmp"
	"time"
)

// longestRetryAfter is the longest delay that is accepted from a server, or from a proxy in front of it.
const longestRetryAfter = 5 * time.Minute

// Backoff configures the delays before a watch opens another stream. Delays double from Initial to Max, and start over
// after a stream that lasted at least Healthy. Each is multiplied by a random factor from 0.5 to 1, so that many
// clients of one daemon do not reconnect at once; the delay that the daemon requests in RetryInfo, at most five minutes,
// is added.
type Backoff struct {
	// Initial is the first delay; zero means 100 ms.
	Initial time.Duration
	// Max is the longest delay, without that of RetryInfo; zero means 5 s.
	Max time.Duration
	// Healthy is the duration of a stream that resets the delay; zero means 10 s.
	Healthy time.Duration
}

func (b Backoff) withDefaults() Backoff {
	return Backoff{
		Initial: cmp.Or(b.Initial, 100*time.Millisecond),
		Max:     cmp.Or(b.Max, 5*time.Second),
		Healthy: cmp.Or(b.Healthy, 10*time.Second),
	}
}

// retries computes the delay before the next attempt from consecutive failures.
type retries struct {
	policy Backoff
	draw   func() float64 // from [0, 1)
	delay  time.Duration  // before the next attempt, without jitter; zero before the first failure
}

func (r *retries) failed(ran, retryAfter time.Duration) time.Duration {
	if r.delay == 0 || ran >= r.policy.Healthy {
		r.delay = r.policy.Initial
	}
	ceiling := min(r.delay, r.policy.Max)
	r.delay = min(2*ceiling, r.policy.Max)
	delay := time.Duration(float64(ceiling) * (0.5 + r.draw()/2))
	return delay + min(retryAfter, longestRetryAfter)
}
