package multicluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestSlotsLimitConcurrentEngagements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, time.Second, 10*time.Second)
		held, err := s.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := s.take(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a second slot was given: %v", err)
		}
		held.release()
		held.release()
		if _, err := s.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSlowEngagementLeavesItsSlotWhileSecondSlotIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := newSlots(1, time.Second, 10*time.Second)
		slow := make([]*slot, 0, 3)
		for range 3 { // the first moves after 1 s, the second stays until the first ends
			taken, err := s.take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			slow = append(slow, taken)
		}
		// The second slot was taken at 1 s, and at 2 s too many were slow already; its engagement ends at 11 s.
		if waited := time.Since(began); waited != 11*time.Second {
			t.Errorf("the third one waited %v", waited)
		}
		for _, each := range slow {
			each.release()
		}
		if len(s.first) != 0 || len(s.second) != 0 {
			t.Errorf("%d and %d slots are held", len(s.first), len(s.second))
		}
	})
}
