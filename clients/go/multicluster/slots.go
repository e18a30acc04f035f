package multicluster

import (
	"context"
	"sync"
	"time"
)

// slots limits the number of clusters that are being engaged concurrently.
//
// A cluster keeps its slot until its informers have synced, so that a slower API server gets fewer concurrent lists. An
// unresponsive cluster would keep its slot for long. So after moveAfter it moves to a second set of slots of the same
// size, if one is free there, and frees its first slot. If the whole server is slow, both sets fill up. After endAfter,
// a cluster frees its slot in any case.
type slots struct {
	first, second       chan struct{}
	moveAfter, endAfter time.Duration
}

func newSlots(size int, moveAfter, endAfter time.Duration) *slots {
	return &slots{
		first:     make(chan struct{}, size),
		second:    make(chan struct{}, size),
		moveAfter: moveAfter,
		endAfter:  endAfter,
	}
}

// slot is an element of one of the two sets. It is freed by release, or after endAfter.
type slot struct {
	of        *slots
	mu        sync.Mutex
	set       chan struct{} // the set that contains the slot; nil after its release
	move, end *time.Timer
}

func (s *slots) take(ctx context.Context) (*slot, error) {
	select {
	case s.first <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	taken := &slot{of: s, set: s.first}
	taken.mu.Lock()
	defer taken.mu.Unlock()
	taken.move = time.AfterFunc(s.moveAfter, taken.yield)
	taken.end = time.AfterFunc(s.endAfter, taken.release)
	return taken, nil
}

func (s *slot) yield() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set != s.of.first {
		return
	}
	select {
	case s.of.second <- struct{}{}:
		<-s.of.first
		s.set = s.of.second
	default:
	}
}

func (s *slot) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		return
	}
	s.move.Stop()
	s.end.Stop()
	<-s.set
	s.set = nil
}
