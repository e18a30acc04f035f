package natssource

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"go.miloapis.com/discovery/objects"
)

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }

const hour = 3600.0

// stream is the last messages of a stream that a publisher writes.
type stream struct {
	name     string
	stored   map[string]stored
	sequence uint64
}

func newStream(name string) *stream { return &stream{name: name, stored: map[string]stored{}} }

func (s *stream) write(subject string, header map[string]string, body string) stored {
	s.sequence++
	message := stored{subject: subject, sequence: s.sequence, header: nats.Header{}, body: []byte(body)}
	for name, value := range header {
		message.header.Set(name, value)
	}
	s.stored[subject] = message
	return message
}

func (s *stream) scope(cluster, uid, state, reason string, epoch int) stored {
	return s.scopeOf("", cluster, uid, state, reason, epoch)
}

func (s *stream) scopeOf(publisher, cluster, uid, state, reason string, epoch int) stored {
	return s.state(namespaceScope, publisher, cluster, uid, state, reason, epoch)
}

// state writes the state of a scope. Resource is GROUP.PLURAL, as in subjects.
func (s *stream) state(resource, publisher, cluster, uid, state, reason string, epoch int) stored {
	body, _ := json.Marshal(map[string]any{
		"publisher": publisher,
		"cluster":   map[string]any{"name": cluster, "incarnation": "i", "uid": uid},
		"state":     map[string]any{"state": state, "since": began, "reason": reason}, "epoch": epoch,
	})
	return s.write(scopeSubject(cluster, resource)+".state", nil, string(body))
}

func (s *stream) cluster(name, state string, objects ...string) {
	s.scope(name, "uid of "+name, state, "", 1)
	for _, each := range objects {
		s.object(name, each, 1, "")
	}
}

func (s *stream) object(cluster, name string, epoch int, gone string) stored {
	return s.objectWithUID(cluster, name, "uid of "+name, epoch, gone)
}

func (s *stream) objectWithUID(cluster, name, uid string, epoch int, gone string) stored {
	header := map[string]string{epochHeader: fmt.Sprint(epoch)}
	if gone != "" {
		header[goneHeader] = gone
	}
	body := fmt.Sprintf(`{"metadata": {"name": %q, "uid": %q, "resourceVersion": "%d"}}`, name, uid, s.sequence)
	return s.write(scopeSubject(cluster, namespaceScope)+"._."+name, header, body)
}

// from returns the messages from a sequence on.
func (s *stream) from(first uint64) []stored {
	found := slices.SortedFunc(maps.Values(s.stored), func(a, b stored) int { return int(a.sequence) - int(b.sequence) })
	return slices.DeleteFunc(found, func(message stored) bool { return message.sequence < first })
}

// expire removes the messages of what is gone.
func (s *stream) expire() {
	maps.DeleteFunc(s.stored, func(_ string, message stored) bool {
		return message.header.Get(goneHeader) != "" || strings.Contains(string(message.body), endedState)
	})
}

// pure is a reader without a connection, and the Objects that it fills.
type pure struct {
	t     *testing.T
	found *objects.Objects
	gone  *[]objects.Gone // of the objects that went
	again int             // how often the stream had to be read again
	*reader
}

type handOver chan *objects.Store

func (h handOver) Run(ctx context.Context, store *objects.Store) error {
	h <- store
	<-ctx.Done()
	return nil
}

func newPure(t *testing.T) *pure {
	t.Helper()
	source, gone := make(handOver), &[]objects.Gone{}
	found, err := objects.NewFrom(source, objects.Options{
		Kinds: []objects.Kind{{Resource: namespaces}, {Resource: roles}}, OnError: func(cluster objects.Cluster, err error) { t.Errorf("%s: %v", cluster.Name(), err) },
		OnChange: func(change objects.Change) {
			if change.Gone != "" {
				*gone = append(*gone, change.Gone)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = found.Run(ctx)
	}()
	t.Cleanup(func() { stop(); <-ended })
	resources := map[kindTokens]string{tokensOf(namespaces): namespaces, tokensOf(roles): roles}
	return &pure{t, found, gone, 0, newReader(<-source, resources)}
}

func (p *pure) receive(message stored, now time.Time) {
	if err := p.reader.receive(message, now); err != nil {
		p.again++
		p.detach(err.Error())
	}
}

func (p *pure) read(s *stream, now float64) {
	for _, message := range s.from(p.attach(s.name, s.sequence, at(now))) {
		p.receive(message, at(now))
	}
	p.catchUp(now)
}

// catchUp notes that all was received, twice, and that a publisher is heard.
func (p *pure) catchUp(now float64) {
	p.heard(at(now), at(now), nil)
	p.caughtUp(at(now).Add(-settledTime))
	p.caughtUp(at(now))
}

func (p *pure) expect(what, want string, stale bool) {
	p.t.Helper()
	held := p.found.List(namespaces)
	got := make([]string, 0, len(held))
	for _, each := range held {
		got = append(got, each.Cluster.Name()+"/"+each.Name)
	}
	slices.Sort(got)
	if strings.Join(got, " ") != want || p.found.View(namespaces).StaleSince().IsZero() == stale {
		p.t.Errorf("%s: there are %q, and the view is %+v; want %q", what, got, p.found.View(namespaces), want)
	}
}

func TestAStreamThatNobodyHasWrittenDoesNotSayThatThereAreNoClusters(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	p.read(s, 0)
	p.detach("cut")
	if err := p.found.View(namespaces).Err(); err == nil || !strings.Contains(err.Error(), "the engaged clusters are not known: cut") {
		t.Errorf("the view says %v", err)
	}
	p.read(s, 1)
	p.receive(s.scope("web", "u", "SYNCED", "", 1), at(2))
	if err := p.found.View(namespaces).Err(); err != nil {
		t.Errorf("the view says %v", err)
	}
}

func TestAReaderThatWasCutOffWhileItResumedResumesOnlyFromWhenItHadReadAll(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.cluster("web", "SYNCED", "a", "b")
	p.read(s, 0)
	s.object("web", "a", 1, "")
	s.object("web", "b", 1, "OBJECT_DELETED")
	missed := s.from(p.attach(s.name, s.sequence, at(0.9*hour)))
	if len(missed) != 2 {
		t.Errorf("asked for %d messages, want 2", len(missed))
	}
	p.receive(missed[0], at(0.9*hour))
	s.expire()
	p.read(s, 1.7*hour)
	p.expect("after the gone-message has expired", "web/a", false)
}

func TestNothingEndsBecauseAnotherStreamWasNotWrittenYet(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	for _, name := range []string{"web", "db", "old"} {
		s.cluster(name, "SYNCED", "a", "b")
	}
	p.read(s, 0)
	s = newStream("two")
	p.read(s, 1)
	p.catchUp(2 * hour)
	p.expect("an empty stream", "db/a db/b old/a old/b web/a web/b", true)
	s.cluster("web", "PENDING", "a")
	s.cluster("db", "SYNCED", "a")
	p.read(s, 2*hour)
	p.expect("one that is half written", "db/a old/a old/b web/a web/b", true)
	p.receive(s.scope("web", "uid of web", "SYNCED", "", 1), at(2*hour))
	p.expect("a scope is synced", "db/a old/a old/b web/a", true)
	p.catchUp(2*hour + rewrittenTime.Seconds())
	p.expect("nothing was written for a while", "db/a old/a old/b web/a", true)
	p.catchUp(2*hour + rewrittenTime.Seconds() + 1)
	p.expect("nor for longer", "db/a web/a", false)
}

func TestAnotherObjectOfANameInAStreamThatIsWrittenAgainProvesNoDeletion(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.cluster("web", "SYNCED", "a")
	p.read(s, 0)
	s = newStream("two")
	s.cluster("web", "STALE")
	s.objectWithUID("web", "a", "former", 1, "")
	p.read(s, 1)
	s.cluster("web", "SYNCED", "a")
	p.read(s, 2)
	s.objectWithUID("web", "a", "later", 1, "")
	p.read(s, 3)
	if got := fmt.Sprint(*p.gone); got != "[MISSING MISSING OBJECT_DELETED]" {
		t.Errorf("objects went as %s", got)
	}
}

func TestAnObjectWhoseScopeWasWrittenAgainWhileTheStreamWasReadIsKept(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.cluster("web", "PENDING", "a")
	messages := s.from(p.attach(s.name, s.sequence, at(0)))
	s.cluster("web", "SYNCED") // in place of the message that the reader was to receive first
	p.receive(messages[1], at(0))
	p.catchUp(0)
	p.detach("cut")
	p.read(s, 1)
	p.expect("the scope came last", "web/a", false)
}

func TestNothingEndsBecauseItWasWrittenAgainWhileTheStreamWasRead(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.cluster("web", "SYNCED", "a", "b")
	p.read(s, 0)
	messages := s.from(p.attach(s.name, s.sequence, at(hour)))
	again := []stored{s.object("web", "a", 1, ""), s.scope("web", "uid of web", "SYNCED", "", 1)}
	p.receive(messages[2], at(hour))
	p.caughtUp(at(hour)) // what was written again is not counted yet
	p.expect("before it is counted", "web/a web/b", false)
	for _, message := range again {
		p.receive(message, at(hour))
	}
	p.heard(at(hour), at(hour), nil)
	p.caughtUp(at(hour).Add(settledTime))
	p.expect("and then", "web/a web/b", false)
}

func TestTheFleetIsStaleSinceAPublisherWasLastHeard(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.cluster("web", "SYNCED", "a")
	since := func(what string, want float64) {
		t.Helper()
		got := p.found.View(namespaces).StaleSince()
		if want < 0 && !got.IsZero() || want >= 0 && !got.Equal(at(want)) {
			t.Errorf("%s: stale since %v, want %v", what, got, want)
		}
	}
	first := p.attach(s.name, s.sequence, at(hour))
	p.heard(at(60), at(hour), nil) // as the stream has it
	for _, message := range s.from(first) {
		p.receive(message, at(hour))
	}
	p.caughtUp(at(hour))
	since("one that ended before", 60)
	p.detach("cut")
	since("and then NATS", 60)
	p.attach(s.name, s.sequence, at(hour+10))
	p.caughtUp(at(hour + 10))
	since("one that runs has not had the time to be heard", -1)
	p.caughtUp(at(hour + 41))
	since("it has", 60)
	p.heard(at(hour+42), at(hour+42), nil)
	since("heard", -1)
	p.caughtUp(at(hour + 72))
	since("30 s", -1)
	p.caughtUp(at(hour + 73))
	since("31 s", hour+42)
	if got := p.found.View(namespaces).Fleet.Problem; got != "no publisher has been heard since 2026-01-01T01:00:42Z" {
		t.Errorf("the problem is %q", got)
	}
	p.caughtUp(at(50)) // the clock was set back
	since("set back", -1)
	p.caughtUp(at(81))
	since("and on", 50)
}

// stale returns since when clusters are STALE, in seconds, and what the fleet says.
func (p *pure) stale() (string, string) {
	outdated := p.found.View(namespaces).Outdated
	found := make([]string, 0, len(outdated))
	for _, each := range outdated {
		found = append(found, fmt.Sprintf("%s %v", each.Cluster.Name(), each.Since.Sub(began).Seconds()))
	}
	slices.Sort(found)
	return strings.Join(found, "; "), p.found.View(namespaces).Fleet.Problem
}

func (p *pure) expectStale(what, clusters, problem string) {
	p.t.Helper()
	if found, text := p.stale(); found != clusters || text != problem {
		p.t.Errorf("%s: stale are %q, and the fleet says %q; want %q and %q", what, found, text, clusters, problem)
	}
}

func (p *pure) hear(at1 float64, publisher string, sources map[string]string) {
	p.heard(at(at1), at(at1), &heartbeatMessage{publisher, sources})
}

func TestAClusterIsStaleIfItsPublisherIsSilentAndOthersAreNot(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	all := map[string]string{"": ""}
	s.scopeOf("one", "web", "u", "SYNCED", "", 1)
	s.scopeOf("two", "db", "u", "SYNCED", "", 1)
	s.scope("old", "u", "SYNCED", "", 1)
	for _, message := range s.from(p.attach(s.name, s.sequence, at(100))) {
		p.receive(message, at(100))
	}
	p.hear(100, "one", all)
	p.caughtUp(at(100))
	p.expectStale("two has not had the time to be heard", "", "")
	p.hear(105, "two", all)
	for _, now := range []float64{110, 130, 136} {
		p.hear(now, "one", all)
	}
	problem := "publisher two has not been heard since 2026-01-01T00:01:45Z"
	p.expectStale("two is silent", "db 105", problem)
	p.detach("cut")
	p.attach(s.name, s.sequence, at(140))
	p.hear(140, "one", all)
	p.caughtUp(at(140))
	p.expectStale("on another connection", "db 105", problem)
	p.receive(s.scopeOf("one", "db", "u", "SYNCED", "", 1), at(141))
	p.caughtUp(at(141))
	p.expectStale("one has the cluster", "", "")
	p.heard(at(142), at(142), nil)
	p.heard(at(173), at(173), &heartbeatMessage{"two", all})
	p.expectStale("of an earlier version", "db 142; web 142", "publisher one has not been heard since 2026-01-01T00:02:22Z")
}

// Only the last heartbeat of one publisher is in the stream.
func TestAClusterIsStaleSinceItsPublisherWroteItIfThatEndedBeforeTheReaderBegan(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	all := map[string]string{"": ""}
	for i, each := range []stored{
		s.scopeOf("two", "db", "u", "SYNCED", "", 1), s.scopeOf("two", "cache", "u", "PENDING", "", 1),
		s.scopeOf("one", "web", "u", "SYNCED", "", 1), s.scopeOf("three", "late", "u", "SYNCED", "", 1),
	} {
		each.at = at([]float64{50, 60, 70, 150}[i]) // the clocks differ
		s.stored[each.subject] = each
	}
	for _, message := range s.from(p.attach(s.name, s.sequence, at(140))) {
		p.receive(message, at(140))
	}
	p.hear(140, "one", all)
	p.caughtUp(at(140))
	p.expectStale("two has not had the time to be heard", "", "")
	p.hear(171, "one", all)
	p.expectStale("two is silent", "db 50; late 140", "publisher three has not been heard since 2026-01-01T00:02:20Z; "+
		"publisher two has not been heard since 2026-01-01T00:00:50Z")
	p.hear(172, "two", all)
	p.hear(172, "three", all)
	p.expectStale("all are heard", "", "")
}

func TestASourceThatItsPublisherDoesNotFollowIsStale(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.cluster("a#web", "SYNCED")
	s.cluster("b#web", "SYNCED")
	p.read(s, 60)
	p.hear(101, "", map[string]string{"a": "", "b": ""})
	p.hear(111, "", map[string]string{"a": "no answer", "b": ""})
	p.expectStale("at once", "", "a: no answer")
	p.hear(132, "", map[string]string{"a": "no answer", "b": ""})
	p.expectStale("later", "a#web 101", "a: no answer")
	p.hear(163, "", map[string]string{"b": ""})
	p.expectStale("without it", "a#web 101", "a publisher of the source a has not been heard since 2026-01-01T00:01:41Z")
	p.hear(164, "", map[string]string{"a": "", "b": ""})
	p.expectStale("again", "", "")
}

// After any history of writes, cuts, absences and lost streams, a reader that catches up has what the stream has.
func TestAReaderThatCatchesUpHasWhatTheStreamHas(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 0))
		pick := func(of ...string) string { return of[random.IntN(len(of))] }
		s, p := newStream("0"), newPure(t)
		truth, epochs, uids := map[string]map[string]bool{}, map[string]int{}, map[string]int{}
		attached, now := false, 0.0
		written := func(message stored) {
			if attached {
				p.receive(message, at(now))
			}
		}
		scope := func(cluster, state, reason string) {
			written(s.scope(cluster, fmt.Sprint(uids[cluster]), state, reason, epochs[cluster]))
		}
		begin := func(cluster string) {
			epochs[cluster] = int(s.sequence)
			truth[cluster] = map[string]bool{}
			scope(cluster, "SYNCED", "")
		}
		for range 80 {
			now += float64(random.IntN(5))
			cluster, name := pick("web", "db"), pick("a", "b", "c")
			held, isEngaged := truth[cluster]
			switch action := random.IntN(20); {
			case action < 1 && attached:
				attached = false
				p.detach("cut")
			case action < 3 && !attached:
				if random.IntN(3) == 0 {
					now += 2 * hour
					s.expire()
				}
				p.read(s, now)
				attached = true
			case action == 3:
				s = newStream(s.name + "'")
				attached = false
				p.detach("lost")
				for _, each := range slices.Sorted(maps.Keys(truth)) {
					epochs[each] = int(s.sequence)
					scope(each, "SYNCED", "")
					for held := range truth[each] {
						s.object(each, held, epochs[each], "")
					}
				}
			case !isEngaged:
				uids[cluster]++
				begin(cluster)
			case action == 4:
				scope(cluster, endedState, pick("DELETED", withdrawn))
				delete(truth, cluster)
				maps.DeleteFunc(s.stored, func(subject string, _ stored) bool {
					return strings.HasPrefix(subject, scopeSubject(cluster, namespaceScope)+"._.")
				})
			case action == 5: // replaced, and its purge is not done yet
				uids[cluster]++
				begin(cluster)
			case action < 9:
				if held[name] {
					written(s.object(cluster, name, epochs[cluster], "OBJECT_DELETED"))
					delete(held, name)
				}
			default:
				written(s.object(cluster, name, epochs[cluster], ""))
				held[name] = true
			}
		}
		if attached {
			p.detach("cut")
		}
		p.read(s, now)
		p.catchUp(now + 1)
		p.catchUp(now + rewrittenTime.Seconds() + 2)
		var want []string
		for cluster, held := range truth {
			for name := range held {
				want = append(want, cluster+"/"+name)
			}
		}
		slices.Sort(want)
		if len(truth) > 0 { // otherwise nothing has said so of another stream
			p.expect(fmt.Sprintf("seed %d", seed), strings.Join(want, " "), false)
		}
		if t.Failed() {
			return
		}
	}
}

func TestAPublisherThatLagsDoesNotEndAProjectThatWasCreatedAgain(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.scope("web", "former", "SYNCED", "", 1)
	s.state(roleScope, "", "web", "former", "SYNCED", "", 2)
	p.read(s, 0)
	for _, write := range []func() stored{
		func() stored { return s.scope("web", "former", endedState, withdrawn, 1) },
		func() stored { return s.scope("web", "new", "PENDING", "", 10) },
		func() stored { return s.object("web", "a", 10, "") },
		func() stored { return s.state(roleScope, "", "web", "former", "STALE", "", 2) },
		func() stored { return s.state(roleScope, "", "web", "former", "NOT_SERVED", "", 2) },
		func() stored { return s.state(roleScope, "", "web", "former", endedState, withdrawn, 2) },
		func() stored { return s.scope("web", "new", "SYNCED", "", 10) },
		func() stored { return s.state(roleScope, "", "web", "new", "SYNCED", "", 12) },
	} {
		p.receive(write(), at(1))
	}
	p.expect("after its last message", "web/a", false)
	if got := p.found.View(roles); len(got.Missing) > 0 || p.again > 0 {
		t.Errorf("the view is %+v, and the stream was read %d times again, want one that is SYNCED, and none", got, p.again)
	}
}

func TestAScopeThatWasDroppedAndGoesOnIsReadAgain(t *testing.T) {
	for name, last := range map[string]func(*stream) stored{
		"the other project ends": func(s *stream) stored {
			return s.state(roleScope, "", "web", "former", endedState, withdrawn, 10)
		},
		"the other project is replaced": func(s *stream) stored {
			return s.state(roleScope, "", "web", "new", "SYNCED", "", 12)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := newStream("one"), newPure(t)
			s.scope("web", "new", "SYNCED", "", 9)
			s.object("web", "a", 9, "")
			p.read(s, 0)
			p.receive(s.state(roleScope, "", "web", "former", "SYNCED", "", 10), at(1)) // its publisher read the stream later
			p.receive(s.scope("web", "new", "SYNCED", "", 9), at(1))
			if got := p.found.View(namespaces); len(got.Missing) != 1 {
				t.Errorf("the view is %+v, want one that misses the project", got)
			}
			p.receive(last(s), at(1))
			p.read(s, 1)
			p.expect("read again", "web/a", false)
			if p.again != 1 {
				t.Errorf("the stream was read %d times again, want 1", p.again)
			}
		})
	}
}

func TestAScopeThatBeganBeforeAnEarlierEngagementEndedIsReadAgain(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.state(roleScope, "", "web", "u", "SYNCED", "", 0)
	s.scope("web", "u", "SYNCED", "", 1)
	p.read(s, 0)
	p.receive(s.scope("web", "u", endedState, withdrawn, 1), at(1))
	p.receive(s.scope("web", "u", "SYNCED", "", 3), at(1))
	p.receive(s.object("web", "a", 3, ""), at(1))
	p.receive(s.state(roleScope, "", "web", "u", endedState, "NOT_READY", 0), at(1))
	p.receive(s.state(roleScope, "", "web", "u", "SYNCED", "", 6), at(1))
	p.read(s, 1)
	p.expect("read again", "web/a", false)
	if p.again != 1 {
		t.Errorf("the stream was read %d times again, want 1", p.again)
	}
}

func TestAClusterEndsWithAScopeThatEndedBefore(t *testing.T) {
	s, p := newStream("one"), newPure(t)
	s.state(roleScope, "", "web", "u", "SYNCED", "", 0)
	s.scope("web", "u", "SYNCED", "", 1)
	p.read(s, 0)
	p.receive(s.scope("web", "u", endedState, withdrawn, 1), at(1))
	p.receive(s.scope("web", "u", endedState, "DELETED", 1), at(1))
	p.receive(s.state(roleScope, "", "web", "u", endedState, withdrawn, 0), at(1))
	p.receive(s.state(roleScope, "", "web", "former", endedState, "DELETED", 0), at(1))
	if _, ok := p.clusters["web"]; !ok {
		t.Error("a cluster ended with a kind of it, or with another project")
	}
	p.receive(s.state(roleScope, "", "web", "u", endedState, "DELETED", 0), at(1))
	if len(p.clusters) != 0 || len(p.found.View(namespaces).Missing) != 0 {
		t.Errorf("ended clusters are known: %v", p.clusters)
	}
}

func TestNamespaceWithTheNameOfNoneIsAnotherPlace(t *testing.T) {
	for token, namespace := range map[string]string{"_": "", "%5F": "_", "team": "team"} {
		found, err := parse("milo.objects._.web.core.configmaps." + token + ".a%2Eb")
		if err != nil || found.object != (place{namespace, "a.b"}) {
			t.Errorf("%s: %+v, %v", token, found.object, err)
		}
	}
}

func TestSpacesAfterAnObjectAreNotPartOfIt(t *testing.T) {
	header := nats.Header{epochHeader: {"1"}}
	found, err := decodeObject(stored{header: header, body: []byte(`{"metadata":{"name":"a"}}   `)})
	if err != nil || string(found.body) != `{"metadata":{"name":"a"}}` {
		t.Errorf("%q, %v", found.body, err)
	}
}
