package multicluster_test

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// lock is an in-memory leader election lock, shared by replicas.
type lock struct {
	mu     sync.Mutex
	record *resourcelock.LeaderElectionRecord
}

func newLock() *lock { return &lock{} }

// take acquires the lock for another holder, until free is called.
func (l *lock) take(holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := metav1.NewTime(time.Now())
	l.record = &resourcelock.LeaderElectionRecord{HolderIdentity: holder, LeaseDurationSeconds: 3600, AcquireTime: now, RenewTime: now}
}

func (l *lock) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record.HolderIdentity = ""
}

func (l *lock) as(identity string) resourcelock.Interface { return &replica{l, identity} }

// replica is one replica's view of the lock.
type replica struct {
	lock     *lock
	identity string
}

func (r *replica) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r.lock.mu.Lock()
	defer r.lock.mu.Unlock()
	if r.lock.record == nil {
		return nil, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "leases"}, "lock")
	}
	found := *r.lock.record
	raw, err := json.Marshal(found)
	return &found, raw, err
}

func (r *replica) Create(_ context.Context, record resourcelock.LeaderElectionRecord) error {
	r.lock.mu.Lock()
	defer r.lock.mu.Unlock()
	if r.lock.record != nil {
		return apierrors.NewAlreadyExists(schema.GroupResource{Resource: "leases"}, "lock")
	}
	r.lock.record = &record
	return nil
}

func (r *replica) Update(_ context.Context, record resourcelock.LeaderElectionRecord) error {
	r.lock.mu.Lock()
	defer r.lock.mu.Unlock()
	r.lock.record = &record
	return nil
}

func (r *replica) RecordEvent(string) {}
func (r *replica) Identity() string   { return r.identity }
func (r *replica) Describe() string   { return "in memory" }
