package discovery

import (
	"math"
	"testing"
	"time"
)

func TestBackoffDoublesUntilMaxAndResetsAfterHealthyStream(t *testing.T) {
	always := func(value float64) func() float64 { return func() float64 { return value } }
	most := always(math.Nextafter(1, 0))

	longest := retries{policy: Backoff{}.withDefaults(), draw: most}
	shortest := retries{policy: Backoff{}.withDefaults(), draw: always(0)}
	for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000} {
		want *= time.Millisecond
		if got := longest.failed(0, 0).Round(time.Millisecond); got != want {
			t.Errorf("the longest delay is %v, want %v", got, want)
		}
		if got := shortest.failed(0, 0); got != want/2 {
			t.Errorf("the shortest delay is %v, want %v", got, want/2)
		}
	}
	if got := shortest.failed(9*time.Second, 0); got != 2500*time.Millisecond {
		t.Errorf("the delay after a short stream is %v, want 2.5s", got)
	}
	if got := shortest.failed(10*time.Second, 3*time.Second); got != 3050*time.Millisecond {
		t.Errorf("the delay after a healthy stream, with RetryInfo, is %v, want 3.05s", got)
	}
	if got := shortest.failed(10*time.Second, math.MaxInt64); got != 5*time.Minute+50*time.Millisecond {
		t.Errorf("the delay is %v, want 5m0.05s, since at most 5 minutes of RetryInfo are accepted", got)
	}
	own := retries{policy: Backoff{Initial: time.Minute, Max: time.Second}.withDefaults(), draw: always(0)}
	for range 2 {
		if got := own.failed(0, 0); got != time.Second/2 {
			t.Errorf("the delay is %v, want 500ms, since Max is a second", got)
		}
	}
}
