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
			t.Fatalf("take() of a second slot: error = %v, want DeadlineExceeded", err)
		}
		held.release()
		held.release()
		if _, err := s.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSlowEngagementMovesToTheSecondSetOfSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := newSlots(1, time.Second, 10*time.Second)
		slow := make([]*slot, 0, 3)
		for range 3 { // the first moves after 1 s; the second cannot move until the first is released
			taken, err := s.take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			slow = append(slow, taken)
		}
		// The second slot is taken at 1 s. At 2 s it cannot move, because the second set is full. It is released at 11 s.
		if waited := time.Since(began); waited != 11*time.Second {
			t.Errorf("the third slot was taken after %v, want 11s", waited)
		}
		for _, each := range slow {
			each.release()
		}
		if len(s.first) != 0 || len(s.second) != 0 {
			t.Errorf("%d and %d slots are taken, want none", len(s.first), len(s.second))
		}
	})
}
