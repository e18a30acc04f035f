package objects

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.miloapis.com/discovery"
)

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }

// thing is an object of the kind of newThings.
func thing(t *testing.T, s *scope, name, uid, phase, label string) *seen {
	t.Helper()
	found, err := s.kind.decode(nil, json.RawMessage(fmt.Sprintf(`{"metadata": {"name": %q, "uid": %q, "resourceVersion": "1", "labels": {"l": %q}},
		"status": {"phase": %q, "noise": %d}}`, name, uid, label, phase, rand.Int())))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func newThings(t *testing.T) *scope {
	t.Helper()
	checked, err := Kind{Resource: "example.com/v1/things", Fields: []string{"status.phase"}, LabelSelector: "l!=out"}.check()
	if err != nil {
		t.Fatal(err)
	}
	byPhase := func(o *Object) []string {
		return []string{o.Fields()["status"].(map[string]any)["phase"].(string), "all"}
	}
	failed := func(*Object, error) { t.Error("an index failed") }
	return newScope(nil, checked, newIndexes(map[string]Index{"phase": byPhase}, failed), at(0))
}

// told describes changes: "+" for what was added, "-" for what was removed.
func told(changes []Change) string {
	lines := make([]string, 0, len(changes))
	for _, change := range changes {
		var parts []string
		for sign, all := range map[string][]*Object{"+": change.Added, "-": change.Removed} {
			for _, each := range all {
				parts = append(parts, sign+each.Name+"/"+each.UID)
			}
		}
		slices.Sort(parts)
		if change.Gone != "" {
			parts = append(parts, string(change.Gone))
		}
		if len(parts) == 0 {
			parts = append(parts, string(change.Scope.State))
		}
		lines = append(lines, strings.Join(parts, " "))
	}
	return strings.Join(lines, "; ")
}

func expectTold(t *testing.T, what string, changes []Change, want string) {
	t.Helper()
	if got := told(changes); got != want {
		t.Errorf("%s: told %q, want %q", what, got, want)
	}
}

func TestScopeTellsWhatChanged(t *testing.T) {
	s := newThings(t)
	list := func(seconds int, items ...*seen) []Change { return s.replace(items, at(seconds)) }
	one := func(name, uid, phase, label string) *seen { return thing(t, s, name, uid, phase, label) }

	expectTold(t, "first list", list(1, one("a", "1", "x", ""), one("b", "2", "x", ""), one("c", "3", "x", "out")), "+a/1 +b/2; SYNCED")
	expectTold(t, "other fields", s.apply(one("a", "1", "x", "other"), false, ObjectDeleted), "")
	expectTold(t, "a named field", s.apply(one("a", "1", "y", ""), false, ObjectDeleted), "+a/1 -a/1")
	expectTold(t, "out of the selector", s.apply(one("a", "1", "y", "out"), false, ObjectDeleted), "-a/1 OUT_OF_SELECTOR")
	expectTold(t, "out of it again", s.apply(one("a", "1", "z", "out"), false, ObjectDeleted), "")
	expectTold(t, "into the selector", s.apply(one("c", "3", "x", ""), false, ObjectDeleted), "+c/3")
	expectTold(t, "deleted", s.apply(one("b", "2", "x", ""), true, ObjectDeleted), "-b/2 OBJECT_DELETED")
	expectTold(t, "deleted again", s.apply(one("b", "2", "x", ""), true, ObjectDeleted), "")
	expectTold(t, "created again", s.apply(one("c", "4", "x", ""), false, ObjectDeleted), "-c/3 OBJECT_DELETED; +c/4")
	expectTold(t, "new", s.apply(one("d", "5", "x", ""), false, ObjectDeleted), "+d/5")
	expectTold(t, "later list", list(2, one("c", "4", "x", "out"), one("e", "6", "x", "")), "-c/4 OUT_OF_SELECTOR; -d/5 MISSING; +e/6")
	if got := s.find(0, "x", nil); len(got) != 1 || got[0].Name != "e" {
		t.Errorf("found %v under x, want e", got)
	}
	if got := s.find(0, "y", nil); len(got) != 0 || len(s.found[0]) != 2 {
		t.Errorf("found %v under y, in an index %v", got, s.found[0])
	}
}

func TestMalformedObjectsKeepTheirLastState(t *testing.T) {
	s := newThings(t)
	s.replace([]*seen{thing(t, s, "a", "1", "x", "")}, at(1))
	strange, err := s.kind.decode(nil, json.RawMessage(`{"metadata": {"name": "a", "uid": 5, "resourceVersion": "2"}}`))
	if err != nil || strange.problem == nil || !strings.Contains(strange.problem.Error(), "example.com/v1/things a is malformed") {
		t.Fatalf("decoded %v, error %v; want a problem", strange, err)
	}
	expectTold(t, "malformed in a watch", s.apply(strange, false, ObjectDeleted), "")
	expectTold(t, "malformed in a list", s.replace([]*seen{strange}, at(2)), "")
	if objects, _ := s.size(); objects != 1 {
		t.Errorf("%d objects, want the last state", objects)
	}
	expectTold(t, "malformed and deleted", s.apply(strange, true, ObjectDeleted), "-a/1 OBJECT_DELETED")
	for _, unnamed := range []string{`{}`, `{"metadata": {"name": ""}}`, `{"metadata": {"name": 1}}`, `[]`, `{"metadata": []}`} {
		if _, err := s.kind.decode(nil, json.RawMessage(unnamed)); err == nil {
			t.Errorf("%s was decoded, want an error: nothing says which object is in the list", unnamed)
		}
	}
}

func TestScopeKnowsItsState(t *testing.T) {
	s := newThings(t)
	expect := func(what string, changes []Change, wantTold string, state State, since time.Time, problem string) {
		t.Helper()
		expectTold(t, what, changes, wantTold)
		if got := s.get(); got.State != state || !got.Since.Equal(since) || got.Problem != problem {
			t.Errorf("%s: the scope is %+v, want %s since %v because of %q", what, got, state, since, problem)
		}
	}
	expect("new", nil, "", Pending, at(0), "not read yet")
	expect("hangs", s.failed(Stale, "timeout", at(1)), "PENDING", Pending, at(0), "timeout")
	expect("hangs on", s.failed(Stale, "timeout", at(2)), "", Pending, at(0), "timeout")
	expect("refuses", s.failed(Forbidden, "no", at(3)), "FORBIDDEN", Forbidden, at(3), "no")
	expect("does not serve", s.failed(NotServed, "none", at(4)), "NOT_SERVED", NotServed, at(4), "none")
	expect("listed", s.replace([]*seen{thing(t, s, "a", "1", "x", "")}, at(5)), "+a/1; SYNCED", Synced, at(5), "")
	expect("watched", s.answered(at(6)), "", Synced, at(5), "")
	s.interrupted(at(10))
	s.interrupted(at(11)) // by the end of its body
	expect("cut", s.failed(Stale, "down", at(12)), "STALE", Stale, at(10), "down")
	expect("still down", s.failed(Stale, "down", at(13)), "", Stale, at(10), "down")
	expect("revoked", s.failed(Forbidden, "no", at(14)), "FORBIDDEN", Forbidden, at(10), "no")
	expect("watched again", s.answered(at(15)), "SYNCED", Synced, at(15), "")
	s.interrupted(at(16))
	expect("cut again", s.failed(Stale, "down", at(17)), "STALE", Stale, at(16), "down")
	expect("listed again", s.replace([]*seen{thing(t, s, "a", "1", "x", "")}, at(18)), "SYNCED", Synced, at(18), "")
	expect("too large", s.drop("too many", at(19)), "-a/1 OVER_BUDGET", OverBudget, at(19), "too many")
	if objects, bytes := s.size(); objects != 0 || bytes != 0 || len(s.find(0, "all", nil)) != 0 {
		t.Errorf("a dropped scope has %d objects of %d bytes", objects, bytes)
	}
	expect("down while dropped", s.failed(Stale, "down", at(20)), "PENDING", Pending, at(20), "down")
	expect("listed after the drop", s.replace([]*seen{thing(t, s, "a", "1", "x", "")}, at(21)), "+a/1; SYNCED", Synced, at(21), "")
	ended := s.end(&discovery.Disengaged{Reason: discovery.ReasonRevoked}, at(22))
	expectTold(t, "revoked", ended, "-a/1 CLUSTER_ENDED")
	if ended[0].Disengaged.Reason != discovery.ReasonRevoked {
		t.Errorf("ended because of %v, want REVOKED", ended[0].Disengaged)
	}
}

// Whatever happens, who adds Added and subtracts Removed has what the scope has, and each index has what its function says.
func TestSumOfTheChangesIsTheScope(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		pick := func(of ...string) string { return of[random.IntN(len(of))] }
		s, sum := newThings(t), map[*Object]bool{}
		random1 := func() *seen {
			return thing(t, s, pick("a", "b", "c", "d"), pick("1", "2"), pick("x", "y"), pick("", "", "out"))
		}
		for range 60 {
			var changes []Change
			switch random.IntN(10) {
			case 0:
				items := map[place]*seen{}
				for range random.IntN(5) {
					one := random1()
					items[one.place()] = one
				}
				changes = s.replace(slices.Collect(maps.Values(items)), began)
			case 1:
				changes = s.drop("", began)
			case 2, 3, 4:
				changes = s.apply(random1(), true, ObjectDeleted)
			default:
				changes = s.apply(random1(), false, ObjectDeleted)
			}
			for _, change := range changes {
				for _, each := range change.Removed {
					if !sum[each] {
						t.Fatalf("seed %d: %s was removed, and not added", seed, each.Name)
					}
					delete(sum, each)
				}
				for _, each := range change.Added {
					sum[each] = true
				}
			}
			held, bytes := s.list(nil), int64(0)
			for _, each := range held {
				bytes += each.bytes() + keyBytes(s.indexes.keys(each))
				if !sum[each] || !slices.Contains(s.find(0, each.Fields()["status"].(map[string]any)["phase"].(string), nil), each) {
					t.Fatalf("seed %d: %s is not in the sum, or not in the index", seed, each.Name)
				}
			}
			indexed := len(s.find(0, "x", nil)) + len(s.find(0, "y", nil))
			if len(sum) != len(held) || indexed != len(held) || len(s.find(0, "all", nil)) != len(held) || bytes != s.bytes {
				t.Fatalf("seed %d: %d objects, %d in the sum, %d in the index, %d of %d bytes", seed, len(held), len(sum), indexed, bytes, s.bytes)
			}
		}
	}
}

func TestTenantWithManySmallScopesDropsNoLargerScopeOfAnotherOne(t *testing.T) {
	b := newBudget(Limits{TotalBytes: 1000}.withDefaults())
	dropped := map[string]int{}
	count := func(cluster discovery.Cluster, bytes int64) {
		s := newThings(t)
		s.cluster = &engagement{current: cluster}
		b.join(s, func(error) { dropped[cluster.Organization+"/"+cluster.Name]++ })
		b.count(s, 1, bytes)
		if b.total > 1000 {
			t.Errorf("%d bytes are counted", b.total)
		}
	}
	count(discovery.Cluster{Name: "a", Organization: "acme"}, 100)
	count(discovery.Cluster{Name: "alone"}, 100)
	count(discovery.Cluster{Name: "acme"}, 20)
	for number := range 90 {
		count(discovery.Cluster{Name: "e", Organization: fmt.Sprintf("evil-%d", number%2)}, 20)
	}
	count(discovery.Cluster{Name: "b", Organization: "acme"}, 150)
	if want := []string{"evil-0/e", "evil-1/e"}; !slices.Equal(slices.Sorted(maps.Keys(dropped)), want) || b.total < 900 {
		t.Errorf("dropped %v, want only those of %v; %d bytes are counted", dropped, want, b.total)
	}
}

func TestBudgetDropsTheLargestScope(t *testing.T) {
	limits := Limits{Objects: 10, Bytes: 100, TotalBytes: 150}.withDefaults()
	b := newBudget(limits)
	var dropped []string
	scopes := map[string]*scope{}
	for _, name := range []string{"a", "b", "c"} {
		scopes[name] = newThings(t)
		scopes[name].cluster = &engagement{current: discovery.Cluster{Name: name}}
		b.join(scopes[name], func(err error) { dropped = append(dropped, name+": "+err.Error()) })
	}
	count := func(name string, objects int, bytes int64, want ...string) {
		t.Helper()
		dropped = nil
		b.count(scopes[name], objects, bytes)
		if !slices.EqualFunc(dropped, want, strings.Contains) {
			t.Errorf("dropped %q, want %q", dropped, want)
		}
	}
	count("a", 1, 60)
	count("b", 1, 50)
	count("c", 1, 41, "a: it is the largest of its tenant, which has the most of all scopes, and these together take more than 150 bytes (Limits.TotalBytes)")
	count("a", 1, 60) // until it has been dropped
	count("b", 1, 101, "b: these objects of the cluster take more than 100 bytes (Limits.Bytes)")
	count("c", 11, 41, "c: the cluster has more than 10 of these objects (Limits.Objects)")
	if b.total != 0 {
		t.Errorf("%d bytes are counted, want none", b.total)
	}
}
