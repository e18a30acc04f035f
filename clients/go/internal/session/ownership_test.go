package session

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "go.miloapis.com/discovery/v1"
)

func owned(span time.Duration) *pb.RenewOwnershipResponse {
	return &pb.RenewOwnershipResponse{Sharded: true, ValidFor: durationpb.New(span)}
}

func TestOwnershipWithoutShardingNeverEnds(t *testing.T) {
	var ownership Ownership
	if !ownership.Held(1 << 60) {
		t.Error("the ownership of a daemon that is not sharded ended")
	}
	ownership.Share()
	if ownership.Held(1) {
		t.Error("a sharded daemon owns clusters before the first renewal")
	}
	ownership.Renewed(&pb.RenewOwnershipResponse{}, time.Minute)
	if !ownership.Held(1<<60) || ownership.Sharded() {
		t.Error("a daemon that is no longer sharded does not own its clusters")
	}
}

func TestOwnershipDeadlineCountsFromTheRequest(t *testing.T) {
	var ownership Ownership
	ownership.Renewed(owned(10*time.Second), 100*time.Second)
	if !ownership.Held(110*time.Second-1) || ownership.Held(110*time.Second) {
		t.Error("the ownership does not end 10 s after the request")
	}
}

func TestRenewalResponseDoesNotShortenOwnership(t *testing.T) {
	for name, response := range map[string]*pb.RenewOwnershipResponse{
		"without a duration": {Sharded: true},
		"for a shorter time": owned(time.Second),
	} {
		var ownership Ownership
		ownership.Renewed(owned(10*time.Second), 100*time.Second)
		ownership.Renewed(response, 105*time.Second)
		if !ownership.Held(110*time.Second - 1) {
			t.Errorf("the response %s shortened the ownership", name)
		}
	}
}

func TestOwnershipExpiryCountsFromTheRequest(t *testing.T) {
	const asked = time.Hour
	for name, each := range map[string]struct {
		validFor *durationpb.Duration
		want     time.Duration
	}{
		"counts from the request":             {durationpb.New(time.Minute), asked + time.Minute},
		"is the request time if unset":        {nil, asked},
		"is before with a negative duration":  {durationpb.New(-time.Minute), asked - time.Minute},
		"is the request time if out of range": {&durationpb.Duration{Seconds: math.MaxInt64}, asked},
		"is the request time if invalid":      {&durationpb.Duration{Seconds: 60, Nanos: 2e9}, asked},
		"is never if centuries later":         {&durationpb.Duration{Seconds: 300 * 365 * 24 * 3600}, math.MaxInt64},
	} {
		if got := Expiry(each.validFor, asked); got != each.want {
			t.Errorf("Expiry %s: got %v, want %v", name, got, each.want)
		}
	}
}

func TestOwnershipIsNotExtendedByInvalidDuration(t *testing.T) {
	for _, seconds := range []int64{math.MaxInt64, math.MinInt64} {
		var ownership Ownership
		ownership.Renewed(owned(10*time.Second), 0)
		invalid := &durationpb.Duration{Seconds: seconds}
		ownership.Renewed(&pb.RenewOwnershipResponse{Sharded: true, ValidFor: invalid}, 0)
		if !ownership.Held(10*time.Second-1) || ownership.Held(10*time.Second) {
			t.Errorf("the ownership does not end after 10 s with a response of %d s", seconds)
		}
	}
}

func TestRenewalDelayAndTimeoutDoNotExceedOwnership(t *testing.T) {
	var ownership Ownership
	ownership.Renewed(owned(10*time.Second), 100*time.Second)
	for _, each := range []struct{ left, next, timeout time.Duration }{
		{10 * time.Second, renewalInterval, renewalTimeout},
		{2 * time.Second, time.Second, 2 * time.Second},
		{300 * time.Millisecond, shortestRenewal, 300 * time.Millisecond},
		{100 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond},
	} {
		now := 110*time.Second - each.left
		if next, timeout := ownership.NextRenewal(now, true), ownership.Timeout(now); next != each.next || timeout != each.timeout {
			t.Errorf("with %v left: renewal after %v with timeout %v, want %v and %v", each.left, next, timeout, each.next, each.timeout)
		}
	}
}

func TestExpiredOwnershipIsHandledAtOnceAndThenRenewalsContinue(t *testing.T) {
	var ownership Ownership
	ownership.Renewed(owned(10*time.Second), 100*time.Second)
	for _, now := range []time.Duration{110 * time.Second, time.Hour} {
		if next := ownership.NextRenewal(now, true); next != 0 {
			t.Errorf("at %v the end of the ownership is handled after %v, want 0", now, next)
		}
		if next, timeout := ownership.NextRenewal(now, false), ownership.Timeout(now); next != time.Second || timeout != renewalTimeout {
			t.Errorf("at %v: renewal after %v with timeout %v, want 1s and %v", now, next, timeout, renewalTimeout)
		}
	}
}
