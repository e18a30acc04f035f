package session

import (
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
		t.Error("it ended")
	}
	ownership.Share()
	if ownership.Held(1) {
		t.Error("a sharded daemon owns clusters before it was asked")
	}
	ownership.Renewed(&pb.RenewOwnershipResponse{}, time.Minute)
	if !ownership.Held(1<<60) || ownership.Sharded() {
		t.Error("a daemon that is no longer sharded owns nothing")
	}
}

func TestOwnershipCountsFromTheRequest(t *testing.T) {
	var ownership Ownership
	ownership.Renewed(owned(10*time.Second), 100*time.Second)
	if !ownership.Held(110*time.Second-1) || ownership.Held(110*time.Second) {
		t.Error("it does not end 10 s after the request")
	}
}

func TestRenewalResponseDoesNotShortenOwnership(t *testing.T) {
	for name, response := range map[string]*pb.RenewOwnershipResponse{
		"without a time": {Sharded: true},
		"delayed":        owned(time.Second),
	} {
		var ownership Ownership
		ownership.Renewed(owned(10*time.Second), 100*time.Second)
		ownership.Renewed(response, 105*time.Second)
		if !ownership.Held(110*time.Second - 1) {
			t.Errorf("%s: it did", name)
		}
	}
}

func TestRenewalsTimeOutBeforeOwnershipEnds(t *testing.T) {
	var ownership Ownership
	ownership.Renewed(owned(10*time.Second), 100*time.Second)
	for _, each := range []struct{ left, next, timeout time.Duration }{
		{10 * time.Second, renewalInterval, renewalTimeout},
		{2 * time.Second, time.Second, 2 * time.Second},
		{300 * time.Millisecond, shortestRenewal, 300 * time.Millisecond},
		{100 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond},
		{0, renewalInterval / 3, renewalTimeout},
		{-time.Hour, renewalInterval / 3, renewalTimeout},
	} {
		now := 110*time.Second - each.left
		if next, timeout := ownership.NextRenewal(now), ownership.Timeout(now); next != each.next || timeout != each.timeout {
			t.Errorf("with %v left: the next renewal is after %v with a timeout of %v", each.left, next, timeout)
		}
	}
}
