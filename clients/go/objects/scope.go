package objects

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.miloapis.com/discovery"
)

// State is the state of a scope: of one kind in one engagement of one cluster.
type State string

// The states of a scope.
const (
	// Pending means that the first list is not complete: an object that is not known may exist.
	Pending State = "PENDING"
	// Synced means that a complete list was applied, and each change since then.
	Synced State = "SYNCED"
	// Stale means that the cluster cannot be followed at present. What was known of it stays.
	Stale State = "STALE"
	// Forbidden means that the cluster refuses the list (403). What was known of it stays.
	Forbidden State = "FORBIDDEN"
	// NotServed means that the cluster does not serve the kind (404). What was known of it stays.
	NotServed State = "NOT_SERVED"
	// OverBudget means that the objects take more memory than they may, and were dropped. They are listed again later.
	OverBudget State = "OVER_BUDGET"
)

// Scope is one kind in one engagement of one cluster.
type Scope struct {
	Cluster  Cluster
	Resource string
	State    State
	// Since is when the scope entered the state. If it is Filled and not Synced, it is the time up to which its objects are
	// known.
	Since time.Time
	// Filled is set once a complete list was applied: what is not found did not exist.
	Filled bool
	// Problem is why the scope is in the state; empty for Synced.
	Problem string
	// Objects is the number of objects that are known.
	Objects int
}

// Gone is why objects are gone.
type Gone string

// The reasons of objects that are gone.
const (
	ObjectDeleted Gone = "OBJECT_DELETED"
	// OutOfSelector means that the object exists, and its labels no longer match.
	OutOfSelector Gone = "OUT_OF_SELECTOR"
	// Missing means that the object was deleted while nobody watched.
	Missing Gone = "MISSING"
	// Withdrawn means that the kind is no longer published: the objects may exist.
	Withdrawn Gone = "WITHDRAWN"
	// ClusterEnded means that the engagement ended, and with it the scope: the objects may exist. Change.Disengaged has the
	// reason, such as REVOKED.
	ClusterEnded Gone = "CLUSTER_ENDED"
	// ScopeOverBudget means that the scope was dropped: the objects may exist. They are added again once they were listed.
	ScopeOverBudget Gone = "OVER_BUDGET"
)

// Change is what changed in one scope at once: objects, or its state.
type Change struct {
	// Scope is the scope after the change.
	Scope Scope
	// Added are the new objects, and the new states of changed ones.
	Added []*Object
	// Removed are the objects that are gone, and the former states of the changed ones.
	Removed []*Object
	// Gone is why the removed objects are gone. It is empty if their new states are in Added.
	Gone Gone
	// Disengaged is why the engagement ended, with ClusterEnded.
	Disengaged *discovery.Disengaged
}

// scope has the objects of a Scope. Its goroutines change it one at a time; others read it.
type scope struct {
	cluster Cluster
	kind    *kind
	indexes *indexes

	reporting sync.Mutex // held while a change is applied and reported

	mu       sync.RWMutex
	objects  map[place]*Object
	found    []map[string]bucket // by index, and its key
	bytes    int64
	isFilled bool // a complete list was applied
	state    State
	since    time.Time
	problem  string
	contact  time.Time // up to when the objects are known
	watching bool
}

func newScope(cluster Cluster, kind *kind, indexes *indexes, now time.Time) *scope {
	s := &scope{cluster: cluster, kind: kind, indexes: indexes}
	s.clear(Pending, now, notBegun)
	return s
}

func (s *scope) clear(state State, now time.Time, problem string) {
	s.objects, s.found, s.bytes, s.isFilled = map[place]*Object{}, s.indexes.empty(), 0, false
	s.state, s.since, s.problem = state, now, problem
}

// describe is called with the lock held.
func (s *scope) describe() Scope {
	return Scope{
		Cluster: s.cluster, Resource: s.kind.resource, State: s.state, Since: s.since, Filled: s.isFilled, Problem: s.problem,
		Objects: len(s.objects),
	}
}

func (s *scope) get() Scope {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.describe()
}

func (s *scope) size() (objects int, bytes int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.objects), s.bytes
}

func (s *scope) object(at place) *Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.objects[at]
}

func (s *scope) find(index int, key string, found []*Object) []*Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.found[index][key].appendTo(found)
}

func (s *scope) list(found []*Object) []*Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.AppendSeq(found, maps.Values(s.objects))
}

// update is an object, with its new state and its keys in the indexes.
type update struct {
	at       place
	now      *Object // nil if it is gone
	keys     [][]string
	was      *Object
	wereKeys [][]string
}

// plan returns the update of an object, or false if nothing that is kept changes. Only the goroutine that changes the
// scope calls it: index functions run without the lock.
func (s *scope) plan(at place, now *Object) (update, bool) {
	was := s.objects[at]
	if was == nil && now == nil || was != nil && now != nil && was.equals(now) {
		return update{}, false
	}
	return update{at: at, now: now, keys: s.indexes.keys(now), was: was, wereKeys: s.indexes.keys(was)}, true
}

// commit is called with the lock held.
func (s *scope) commit(updates []update) {
	for _, each := range updates {
		if each.was != nil {
			s.bytes -= each.was.bytes() + keyBytes(each.wereKeys)
			delete(s.objects, each.at)
			remove(s.found, each.wereKeys, each.was)
		}
		if each.now != nil {
			s.bytes += each.now.bytes() + keyBytes(each.keys)
			s.objects[each.at] = each.now
			add(s.found, each.keys, each.now)
		}
	}
}

// apply applies an object of a watch. Replaced is why another object of its name is gone.
func (s *scope) apply(found *seen, isDeleted bool, replaced Gone) []Change {
	now, gone := found.object, OutOfSelector
	switch {
	case isDeleted:
		now, gone = nil, ObjectDeleted
	case found.problem != nil:
		return nil
	}
	return s.put(found.place(), now, func(u update) Gone {
		if u.now != nil {
			return replaced
		}
		return gone
	})
}

// put applies the state of an object; nil if it is gone, or not selected, for a reason.
func (s *scope) put(at place, now *Object, gone func(update) Gone) []Change {
	planned, ok := s.plan(at, now)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commit([]update{planned})
	return s.changes([]update{planned}, gone)
}

// replace applies a complete list.
func (s *scope) replace(items []*seen, now time.Time) []Change {
	var updates []update
	listed := make(map[place]*seen, len(items))
	for _, each := range items {
		listed[each.place()] = each
		if each.problem != nil {
			continue
		}
		if planned, ok := s.plan(each.place(), each.object); ok {
			updates = append(updates, planned)
		}
	}
	for at := range s.objects {
		if _, ok := listed[at]; !ok {
			planned, _ := s.plan(at, nil)
			updates = append(updates, planned)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commit(updates)
	changes := s.changes(updates, func(u update) Gone {
		switch {
		case u.now != nil:
			return ObjectDeleted // there is another object of its name
		case listed[u.at] != nil:
			return OutOfSelector
		}
		return Missing
	})
	s.isFilled, s.contact = true, now
	if s.state == Synced {
		return changes
	}
	s.state, s.since, s.problem = Synced, now, ""
	return append(changes, Change{Scope: s.describe()})
}

// changes returns what to report of updates: what was added or changed, and then what is gone, by reason. It is called
// with the lock held.
func (s *scope) changes(updates []update, gone func(update) Gone) []Change {
	var kept Change
	var lost []Change
	for _, each := range updates {
		isSame := each.was != nil && each.now != nil && each.was.UID == each.now.UID
		if each.now != nil {
			kept.Added = append(kept.Added, each.now)
		}
		switch {
		case each.was == nil:
		case isSame:
			kept.Removed = append(kept.Removed, each.was)
		default:
			reason := gone(each)
			at := slices.IndexFunc(lost, func(c Change) bool { return c.Gone == reason })
			if at < 0 {
				at, lost = len(lost), append(lost, Change{Gone: reason})
			}
			lost[at].Removed = append(lost[at].Removed, each.was)
		}
	}
	if kept.Added != nil {
		lost = append(lost, kept)
	}
	for i := range lost {
		lost[i].Scope = s.describe()
	}
	return lost
}

// answered notes that the watch is open, which follows from the objects that are known.
func (s *scope) answered(now time.Time) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watching, s.contact = true, now
	if !s.isFilled || s.state == Synced {
		return nil
	}
	s.state, s.since, s.problem = Synced, now, ""
	return []Change{{Scope: s.describe()}}
}

// interrupted notes that the watch has ended.
func (s *scope) interrupted(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watching {
		s.watching, s.contact = false, now
	}
}

// unanswered notes that a watch has not been answered for long.
func (s *scope) unanswered(problem string, now time.Time) []Change {
	s.mu.RLock()
	watching := s.watching
	s.mu.RUnlock()
	if watching {
		return nil
	}
	return s.failed(Stale, problem, now)
}

// failed notes that a list or a watch failed.
func (s *scope) failed(state State, problem string, now time.Time) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isFilled {
		now = s.contact
	} else if state == Stale {
		state = Pending
	}
	isNew := s.state != state
	if isNew {
		s.since = now
	}
	isNew = isNew || s.problem != problem
	s.state, s.problem = state, problem
	if !isNew {
		return nil
	}
	return []Change{{Scope: s.describe()}}
}

// enter enters the state that a source has of the scope.
func (s *scope) enter(state State, since time.Time, problem string) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == state && s.since.Equal(since) && s.problem == problem {
		return nil
	}
	s.state, s.since, s.problem, s.isFilled = state, since, problem, s.isFilled || state == Synced
	return []Change{{Scope: s.describe()}}
}

// drop ends the scope, because it exceeds a limit, and begins another one.
func (s *scope) drop(problem string, now time.Time) []Change {
	return s.empty(Change{Gone: ScopeOverBudget}, OverBudget, now, problem)
}

// withdraw ends the scope, because its kind is no longer there to be read.
func (s *scope) withdraw(now time.Time) []Change {
	return s.empty(Change{Gone: Withdrawn}, Pending, now, "the kind was withdrawn")
}

// end ends the scope with the engagement of its cluster.
func (s *scope) end(cause *discovery.Disengaged, now time.Time) []Change {
	return s.empty(Change{Gone: ClusterEnded, Disengaged: cause}, s.get().State, now, cause.Error())
}

// empty removes all objects.
func (s *scope) empty(change Change, state State, now time.Time, problem string) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	change.Removed = slices.Collect(maps.Values(s.objects))
	s.clear(state, now, problem)
	change.Scope = s.describe()
	return []Change{change}
}

func problemOf(err error) (State, string) {
	switch {
	case isForbidden(err):
		return Forbidden, err.Error()
	case isNotFound(err):
		return NotServed, fmt.Sprintf("%v: check the group, version and plural, and whether its CustomResourceDefinition is installed there", err)
	default:
		return Stale, err.Error()
	}
}
