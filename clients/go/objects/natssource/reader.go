package natssource

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/objects"
)

const (
	// goneTTL is how long the stream keeps the message that an object is gone, or that a scope has ended.
	goneTTL = time.Hour
	// rewrittenTime is how long clusters that another stream lacks are kept after a publisher has last written one of them.
	// Publishers write a lost stream again within seconds, and nothing ends before the first of them has begun to.
	rewrittenTime = 5 * time.Minute
	// settledTime is how long after it has read all, a reader that removes what it has not seen waits: a message that was
	// written again while it read is delivered once more, and may not have been counted yet.
	settledTime = time.Second
	// forgottenTime is after which time it is forgotten when a publisher was heard.
	forgottenTime = time.Hour
)

// Variables for tests.
var (
	// resumable is how long a reader can be away and resume.
	resumable = goneTTL - 5*time.Minute
	// silentTime is how long publishers may not be heard. Each of them writes every 10 s.
	silentTime = 30 * time.Second
)

var errReadAgain = errors.New("what had ended goes on; the stream is read again")

// store is what the reader fills: a [*objects.Store].
type store interface {
	SetFleet(discovery.FleetState)
	Engage(discovery.Cluster)
	Disengage(cluster string, reason discovery.DisengageReason)
	SetState(cluster, resource string, state objects.State, since time.Time, problem string)
	Withdraw(cluster, resource string)
	Put(cluster, resource string, object json.RawMessage, replaced objects.Gone) error
	Remove(cluster, resource, namespace, name string, reason objects.Gone)
	Objects(cluster, resource string) []*objects.Object
	Fail(cluster string, err error)
}

// reader turns messages of the stream into changes of a store. It does no I/O, and time is an argument.
//
// The stream has the last message of each subject, so that reading from a sequence gives each subject's present state that
// is newer. A reader that was away for longer than messages of ends live, reads all of them, and then removes what it has
// not seen. A stream that is another one by now may lack what its publisher has yet to write again: objects that it lacks
// are removed when their scope is SYNCED there, and clusters when publishers have written no more of them for a while.
//
// A cluster is the project of its newest scope: a publisher that lags may still write of a former project. What was dropped
// and goes on nevertheless is read again.
type reader struct {
	store     store
	resources map[kindTokens]string

	position *position
	scopes   map[scopeKey]*scope
	clusters map[string]discovery.Cluster // as the store has them

	isSnapshot    bool
	isBehind      bool
	readAt        time.Time // when all messages of a snapshot were first received
	isOtherStream bool      // something is known from another stream, and is not proven to be gone by what this one lacks
	isFleetKnown  bool

	missing      map[scopeKey]struct{} // the scopes that are known, and that another stream has not shown
	missingSince time.Time
	rewrittenAt  time.Time

	publishers publishers
}

// position is how far a stream was read.
type position struct {
	lineage  string // which stream it is, and since when it certainly has lost nothing
	sequence uint64
	at       time.Time // when all messages that the stream then had were received
}

// scope is one kind in one cluster as the reader knows it.
type scope struct {
	epoch        int64 // messages of objects with a lower one are ignored
	isEpochKnown bool  // unless the stream is another one by now
	hasBegun     bool  // the store has it
	// state is what the store gets once the reader has caught up.
	state *scopeMessage
	told  *scopeMessage // the last message in the stream, unless it has ended
	// isDropped says that the stream may have objects of this epoch that the reader has dropped.
	isDropped bool
	// buffered are objects of a scope whose own message comes later: perhaps after all others, if it was written again.
	buffered []bufferedObject
	// seen are the objects that the stream has shown since it is read from the beginning; nil if it has shown all.
	seen map[place]struct{}
}

type bufferedObject struct {
	at      place
	message objectMessage
}

func newReader(to store, resources map[kindTokens]string) *reader {
	return &reader{
		store: to, resources: resources, scopes: map[scopeKey]*scope{}, clusters: map[string]discovery.Cluster{},
		missing: map[scopeKey]struct{}{}, isBehind: true,
	}
}

// --- the connection ---

// attach begins to read a stream, and returns the sequence from which on to read.
func (r *reader) attach(lineage string, lastSequence uint64, now time.Time) uint64 {
	before := r.position
	isSame := before != nil && before.lineage == lineage && before.sequence <= lastSequence
	isRecent := before != nil && !now.Before(before.at) && now.Sub(before.at) <= resumable
	r.isBehind, r.readAt = true, time.Time{}
	r.isSnapshot = r.isSnapshot || !isSame || !isRecent // one that was cut off begins again
	isUnproven := len(r.missing) > 0
	for _, each := range r.scopes {
		isUnproven = isUnproven || each.seen != nil
	}
	r.isOtherStream = !isSame || r.isOtherStream && isUnproven
	if r.isSnapshot {
		maps.DeleteFunc(r.scopes, func(_ scopeKey, each *scope) bool {
			return !each.hasBegun && (!isSame || each.told == nil)
		})
	}
	for _, each := range r.scopes {
		if r.isSnapshot {
			each.buffered, each.seen, each.isDropped = nil, nil, false
			if each.hasBegun {
				each.seen = map[place]struct{}{}
			}
		}
		each.state, each.isEpochKnown = nil, each.isEpochKnown && isSame
	}
	r.publishers.listen(now)
	if !r.isFleetKnown {
		r.store.SetFleet(discovery.FleetState{Connected: true})
	}
	if before != nil && !r.isSnapshot {
		return before.sequence + 1
	}
	at := now
	if before != nil {
		at = before.at
	}
	r.position = &position{lineage: lineage, at: at}
	return 1
}

// detach notes that the server cannot be reached. What is known stays.
func (r *reader) detach(problem string) {
	state := discovery.FleetState{Problem: problem, Synced: r.isFleetKnown}
	if r.isFleetKnown {
		state.StaleSince = r.publishers.known(r.position.at)
	}
	r.store.SetFleet(state)
}

// --- messages ---

// heard notes that a publisher ran at a time, which is the last one that the stream knows. The heartbeat is nil if it is of
// an earlier version, which stands for all clusters.
func (r *reader) heard(at, now time.Time, heartbeat *heartbeatMessage) {
	r.publishers.hear(at, heartbeat)
	r.noteSilence(now)
}

func (r *reader) noteSilence(now time.Time) {
	followers := map[follower]time.Time{}
	for key, each := range r.scopes {
		if each.hasBegun {
			by := followerOf(key, each)
			last := followers[by]
			if objects.State(each.told.State.State) == objects.Synced && each.told.at.After(last) {
				last = each.told.at
			}
			followers[by] = last
		}
	}
	if r.publishers.haveChanged(now, followers) && !r.isBehind {
		r.reportStates()
		r.reportFleet()
	}
}

func (r *reader) reportStates() {
	for key, each := range r.scopes {
		r.reportState(key, each)
	}
}

// reportState reports the state that the stream has of a scope, if what follows it is heard.
func (r *reader) reportState(key scopeKey, of *scope) {
	if !of.hasBegun || of.told == nil {
		return
	}
	state, since, problem := objects.State(of.told.State.State), of.told.State.Since, of.told.State.Problem
	by := followerOf(key, of)
	if _, isSilent := r.publishers.silent[by]; isSilent && state == objects.Synced {
		state, since, problem = objects.Stale, r.publishers.lastFollowed(by), r.publishers.problem(by)
	}
	if problem == "" && state == objects.Pending {
		problem = "the first list is not complete"
	}
	r.store.SetState(key.cluster, r.resources[key.kind], state, since, problem)
}

// receive applies a message. It returns errReadAgain if the reader has to be attached again, and nothing is to be called
// before.
func (r *reader) receive(message stored, now time.Time) error {
	r.position.sequence = message.sequence
	of, err := parse(message.subject)
	if err != nil {
		r.store.Fail("", message.unusable(err))
		return nil
	}
	resource, ok := r.resources[of.scope.kind]
	if !ok {
		return nil
	}
	found := r.scopes[of.scope]
	if found == nil {
		found = &scope{epoch: -1, isEpochKnown: true}
		r.scopes[of.scope] = found
	}
	if of.isObject {
		decoded, err := decodeObject(message)
		if err == nil {
			err = r.receiveObject(of.scope.cluster, resource, found, bufferedObject{of.object, decoded})
		}
		if err != nil {
			r.store.Fail(of.scope.cluster, err)
		}
		return nil
	}
	decoded, err := decodeScope(message)
	if err != nil {
		r.store.Fail(of.scope.cluster, err)
		return nil
	}
	wasKnown := r.isFleetKnown && len(r.missing) == 0
	if !r.receiveScope(of.scope, resource, found, decoded) {
		r.isSnapshot = true
		return fmt.Errorf("%s: %w", of.scope.cluster, errReadAgain)
	}
	if _, ok := r.missing[of.scope]; ok {
		delete(r.missing, of.scope)
		r.rewrittenAt = now
	}
	if !wasKnown && !r.isBehind {
		r.reportFleet()
	}
	return nil
}

// caughtUp notes that all messages that the stream has were received.
func (r *reader) caughtUp(now time.Time) {
	r.position.at = now
	r.noteSilence(now)
	if len(r.missing) > 0 && now.Sub(r.rewrittenAt) > rewrittenTime && r.isRewritten() {
		r.endMissing()
		r.reportFleet()
	}
	if !r.isBehind {
		return
	}
	if r.isSnapshot {
		if r.readAt.IsZero() {
			r.readAt = now
		}
		wasKnown := false
		for _, each := range r.scopes {
			wasKnown = wasKnown || each.seen != nil
		}
		if wasKnown && now.Sub(r.readAt) < settledTime {
			return
		}
		r.sweep(now)
	}
	r.isBehind, r.isSnapshot = false, false
	for key, each := range r.scopes {
		if each.hasBegun && each.state != nil {
			if !r.isOtherStream || objects.State(each.state.State.State) == objects.Synced {
				r.removeUnseen(key, each)
			}
		}
		each.state = nil
	}
	r.noteSilence(now)
	r.reportStates()
	r.reportFleet()
}

// reportFleet reports whether all clusters are known. A stream without any is one that nobody has written yet.
func (r *reader) reportFleet() {
	r.isFleetKnown = r.isFleetKnown || len(r.clusters) > 0
	state := discovery.FleetState{Connected: true, Synced: r.isFleetKnown}
	switch {
	case len(r.missing) > 0:
		state.Synced, state.StaleSince = true, r.publishers.known(r.missingSince)
		state.Problem = "the stream was lost, and lacks clusters that it had: they stay until publishers have written it again"
	case r.publishers.areSilent:
		state.Problem = "no publisher has been heard since " + r.publishers.heardAt.UTC().Format(time.RFC3339)
		if r.isFleetKnown {
			state.StaleSince = r.publishers.heardAt
		}
	case r.isFleetKnown:
		state.Problem, state.StaleSince = r.publishers.problems()
	}
	r.store.SetFleet(state)
}

func (r *reader) receiveObject(cluster, resource string, of *scope, found bufferedObject) error {
	switch {
	case of.hasBegun && of.isEpochKnown && found.message.epoch == of.epoch:
		return r.apply(cluster, resource, of, found)
	case !of.isEpochKnown || found.message.epoch > of.epoch || of.isHidden() && found.message.epoch == of.epoch:
		of.buffered = append(of.buffered, found)
	}
	return nil
}

func (r *reader) apply(cluster, resource string, of *scope, found bufferedObject) error {
	at := found.at
	if found.message.gone == "" {
		replaced := objects.ObjectDeleted
		if of.seen != nil {
			of.seen[at] = struct{}{}
			if r.isOtherStream {
				// Not proven to be deleted: what writes the stream again may know less than the lost one had.
				replaced = objects.Missing
			}
		}
		return r.store.Put(cluster, resource, found.message.body, replaced)
	}
	delete(of.seen, at)
	r.store.Remove(cluster, resource, at.namespace, at.name, goneOf(found.message.gone))
	return nil
}

// receiveScope reports false if the stream has to be read again.
func (r *reader) receiveScope(key scopeKey, resource string, of *scope, message scopeMessage) bool {
	if of.isEpochKnown && message.Epoch < of.epoch {
		return true
	}
	if message.State.State == endedState {
		isKnown := r.end(key, of, message.Cluster.UID, message.State.Reason)
		of.epoch, of.isEpochKnown, of.buffered = message.Epoch, true, nil
		return isKnown
	}
	isNext := of.isEpochKnown && message.Epoch > of.epoch ||
		!of.isEpochKnown && of.told != nil && of.told.Cluster.UID != message.Cluster.UID
	wasBegun := isNext && of.hasBegun
	if isNext {
		of.drop()
	}
	of.epoch, of.isEpochKnown, of.told = message.Epoch, true, &message
	isKnown := true
	if before, ok := r.clusters[key.cluster]; !ok || before.UID != message.Cluster.UID {
		isKnown = r.settle(key.cluster)
	}
	if wasBegun {
		r.store.Withdraw(key.cluster, resource)
	}
	before := r.clusters[key.cluster]
	switch {
	case !isKnown:
		return false
	case before.UID != message.Cluster.UID:
		of.isDropped, of.buffered = true, nil
		return true
	}
	// A cluster keeps the incarnation that it had when it was first seen: a restarted daemon has another one for it.
	r.engage(key.cluster, message.Cluster, before.Incarnation)
	return r.show(key, resource, of)
}

// show applies the last message of a scope of the cluster's present project. It reports false if the stream has to be read
// again.
func (r *reader) show(key scopeKey, resource string, of *scope) bool {
	message := of.told
	if !of.hasBegun {
		if of.isDropped {
			return false
		}
		of.hasBegun = true
		r.store.SetState(key.cluster, resource, objects.Pending, message.State.Since, "the first list is not complete")
	}
	for _, each := range of.buffered {
		if each.message.epoch == message.Epoch {
			if err := r.apply(key.cluster, resource, of, each); err != nil {
				r.store.Fail(key.cluster, err)
			}
		}
	}
	of.buffered = nil
	if r.isBehind {
		of.state = message
		return true
	}
	if objects.State(message.State.State) == objects.Synced {
		r.removeUnseen(key, of)
	}
	r.reportState(key, of)
	return true
}

func (r *reader) engage(name string, of clusterFields, incarnation string) {
	cluster := of.cluster(incarnation)
	cluster.Name = name
	r.clusters[name] = cluster
	r.store.Engage(cluster)
}

// settle has a cluster be the project of its newest scope. It reports false if the stream has to be read again.
func (r *reader) settle(name string) bool {
	var newest *scope
	isKnown := map[string]bool{} // by UID
	for _, each := range r.of(name) {
		if each.told == nil {
			continue
		}
		uid := each.told.Cluster.UID
		known, ok := isKnown[uid]
		isKnown[uid] = (known || !ok) && !each.isDropped
		if newest == nil || each.isNewer(newest) {
			newest = each
		}
	}
	if newest == nil {
		return true
	}
	of := newest.told.Cluster
	if before, ok := r.clusters[name]; ok {
		if before.UID == of.UID {
			return true
		}
		r.endCluster(name, discovery.ReasonReplaced, -1)
	}
	r.engage(name, of, of.Incarnation)
	return isKnown[of.UID]
}

// of returns the scopes of a cluster.
func (r *reader) of(name string) map[scopeKey]*scope {
	found := make(map[scopeKey]*scope, len(r.resources))
	for kind := range r.resources {
		key := scopeKey{name, kind}
		if each := r.scopes[key]; each != nil {
			found[key] = each
		}
	}
	return found
}

// isNewer reports whether a scope began after another one, of which it may have another project. Of those that began at
// once, the store keeps what it has.
func (s *scope) isNewer(than *scope) bool {
	switch {
	case s.isEpochKnown != than.isEpochKnown:
		return s.isEpochKnown
	case s.isEpochKnown && s.epoch != than.epoch:
		return s.epoch > than.epoch
	}
	return s.hasBegun && !than.hasBegun
}

// --- ends ---

// end reports false if the stream has to be read again.
func (r *reader) end(key scopeKey, of *scope, uid, reason string) bool {
	isKnown := true
	switch {
	case !of.hasBegun:
		if reason != withdrawn && r.clusters[key.cluster].UID == uid && !r.isShown(key.cluster) {
			r.endCluster(key.cluster, reasonOf(reason), -1) // whose scopes were withdrawn before
		}
	case reason == withdrawn:
		r.withdraw(key, of)
		isKnown = r.settle(key.cluster)
	default:
		// What began after the scope's last state may be of another engagement, and then goes on.
		r.endCluster(key.cluster, reasonOf(reason), int64(of.told.sequence)) //nolint:gosec // streams end before
	}
	of.drop()
	return isKnown
}

// isShown reports whether the store has a scope of the cluster.
func (r *reader) isShown(cluster string) bool {
	for _, each := range r.of(cluster) {
		if each.hasBegun {
			return true
		}
	}
	return false
}

func (r *reader) withdraw(key scopeKey, of *scope) {
	r.store.Withdraw(key.cluster, r.resources[key.kind])
	of.drop()
	delete(r.missing, key)
}

// endCluster ends a cluster with its scopes. Those that had begun by a sequence do not go on.
func (r *reader) endCluster(name string, reason discovery.DisengageReason, until int64) {
	if _, ok := r.clusters[name]; !ok {
		return
	}
	r.store.Disengage(name, reason)
	delete(r.clusters, name)
	for key, each := range r.of(name) {
		if !each.hasBegun {
			continue
		}
		told := each.told
		each.drop()
		if _, isMissing := r.missing[key]; each.isEpochKnown && !isMissing {
			each.isDropped = true
			if each.epoch > until {
				each.told = told
			}
		}
		delete(r.missing, key)
	}
}

// isHidden reports whether the stream has it, and the store has not, and none of its objects was dropped since it is read.
func (s *scope) isHidden() bool { return !s.hasBegun && s.told != nil && !s.isDropped }

// drop forgets what has ended, but for its epoch.
func (s *scope) drop() {
	s.hasBegun, s.isDropped, s.state, s.told, s.seen = false, false, nil, nil, nil
}

// sweep ends what the snapshot did not have; if it is of another stream, later.
func (r *reader) sweep(now time.Time) {
	if len(r.missing) == 0 {
		r.missingSince, r.rewrittenAt = now, now
	}
	clear(r.missing)
	for key, each := range r.scopes {
		if each.hasBegun && each.state == nil {
			r.missing[key] = struct{}{}
		}
	}
	if !r.isOtherStream {
		r.endMissing()
	}
	for key, each := range r.scopes {
		if each.isHidden() && each.state == nil {
			each.told = nil
		}
		if !each.hasBegun && each.buffered == nil && !each.isDropped {
			delete(r.scopes, key)
		}
	}
}

// isRewritten reports whether the stream has some of the scopes.
func (r *reader) isRewritten() bool {
	for key, each := range r.scopes {
		if _, ok := r.missing[key]; each.hasBegun && !ok {
			return true
		}
	}
	return false
}

// endMissing ends the scopes that the stream does not show, and the clusters of which it shows none.
func (r *reader) endMissing() {
	shown := map[string]struct{}{}
	for key, each := range r.scopes {
		if _, ok := r.missing[key]; each.hasBegun && !ok {
			shown[key.cluster] = struct{}{}
		}
	}
	for name := range r.clusters {
		if _, ok := shown[name]; !ok {
			r.endCluster(name, discovery.ReasonUnspecified, -1)
		}
	}
	for key := range r.missing {
		r.withdraw(key, r.scopes[key])
	}
}

func (r *reader) removeUnseen(key scopeKey, of *scope) {
	seen := of.seen
	of.seen = nil
	if seen == nil {
		return
	}
	resource := r.resources[key.kind]
	for _, held := range r.store.Objects(key.cluster, resource) {
		if _, ok := seen[place{held.Namespace, held.Name}]; !ok {
			r.store.Remove(key.cluster, resource, held.Namespace, held.Name, objects.Missing)
		}
	}
}

// goneOf returns why an object is gone. A newer publisher may know a reason that this reader does not.
func goneOf(text string) objects.Gone {
	switch gone := objects.Gone(text); gone {
	case objects.ObjectDeleted, objects.OutOfSelector, objects.Withdrawn:
		return gone
	default:
		return objects.Missing
	}
}

// follower is what follows a scope: its publisher, which may be unnamed, and the source of its cluster.
type follower struct{ publisher, source string }

func followerOf(key scopeKey, of *scope) follower {
	source, _, isNamed := strings.Cut(key.cluster, "#")
	if !isNamed {
		source = ""
	}
	return follower{of.told.Publisher, source}
}

// publishers is when they were last heard.
type publishers struct {
	heardAt time.Time // when any was; before one was heard, when the stream was first read
	firstAt time.Time // when the stream was first read
	// listenedSince is since when one that runs would have been heard; zero if the stream has said when it last was.
	listenedSince time.Time
	// openedAt is when the connection began: the stream has the last heartbeat of one publisher only.
	openedAt   time.Time
	unnamedAt  time.Time              // when one was last heard that stands for everything
	followedAt map[follower]time.Time // when they were last heard to follow all clusters
	told       map[follower]toldProblem
	// syncedAt is when those of scopes last wrote that one of them is SYNCED; zero if they did not.
	syncedAt map[follower]time.Time

	areSilent bool // none is heard
	// silent are those of scopes that are not heard, or are heard to follow not all clusters of the source.
	silent   map[follower]struct{}
	reported string
}

// toldProblem is why a publisher does not follow all clusters of a source.
type toldProblem struct {
	at   time.Time
	text string
}

// listen notes that a connection begins.
func (p *publishers) listen(now time.Time) {
	p.listenedSince, p.openedAt = now, now
	if p.heardAt.IsZero() {
		p.heardAt, p.firstAt = now, now
		p.followedAt, p.told = map[follower]time.Time{}, map[follower]toldProblem{}
	}
}

func (p *publishers) hear(at time.Time, heartbeat *heartbeatMessage) {
	p.heardAt, p.listenedSince = at, time.Time{}
	if heartbeat == nil {
		p.unnamedAt = at
		return
	}
	for source, problem := range heartbeat.Sources {
		by := follower{heartbeat.Publisher, source}
		if problem != "" {
			p.told[by] = toldProblem{at, problem}
			continue
		}
		p.followedAt[by] = at
		delete(p.told, by)
	}
}

// lastFollowed returns until when clusters were followed, as far as was heard.
func (p *publishers) lastFollowed(by follower) time.Time {
	last := p.unnamedAt
	for other, at := range p.followedAt {
		if (other == by || by.publisher == "" && other.source == by.source) && at.After(last) {
			last = at
		}
	}
	if !last.IsZero() {
		return last
	}
	if at := p.syncedAt[by]; !at.IsZero() && at.Before(p.firstAt) {
		return at // it may have ended before the stream was first read
	}
	return p.firstAt
}

// problem returns why what follows is believed no longer.
func (p *publishers) problem(by follower) string {
	who, of := "a publisher", ""
	if by.publisher != "" {
		who = "publisher " + by.publisher
	}
	if by.source != "" {
		of = " of the source " + by.source
	}
	return who + of + " has not been heard since " + p.lastFollowed(by).UTC().Format(time.RFC3339)
}

// problems returns why not all clusters are known, and since when.
func (p *publishers) problems() (text string, since time.Time) {
	texts := map[follower]string{}
	for by := range p.silent {
		texts[by] = p.problem(by)
	}
	for by, told := range p.told {
		texts[by] = told.text
		if by.source != "" {
			texts[by] = by.source + ": " + told.text
		}
	}
	for by := range texts {
		if at := p.lastFollowed(by); since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return strings.Join(slices.Compact(slices.Sorted(maps.Values(texts))), "; "), since
}

// haveChanged reports whether others are silent now than before. Followers are those of all scopes, with `syncedAt`.
func (p *publishers) haveChanged(now time.Time, followers map[follower]time.Time) bool {
	p.syncedAt = followers
	for _, at := range []*time.Time{&p.heardAt, &p.firstAt, &p.listenedSince, &p.openedAt, &p.unnamedAt} {
		if now.Before(*at) { // the clock was set back
			*at = now
		}
	}
	for by, at := range p.followedAt {
		if now.Before(at) {
			p.followedAt[by] = now
		}
	}
	maps.DeleteFunc(p.followedAt, func(_ follower, at time.Time) bool { return now.Sub(at) >= forgottenTime })
	maps.DeleteFunc(p.told, func(_ follower, told toldProblem) bool { return now.Sub(told.at) > silentTime })
	wereSilent, known := p.areSilent, p.silent
	p.areSilent = now.Sub(p.heardAt) > silentTime && now.Sub(p.listenedSince) > silentTime
	p.silent = map[follower]struct{}{}
	for by := range followers {
		last := p.lastFollowed(by)
		_, wasKnown := known[by]
		if isNew := !p.areSilent && (wereSilent || !wasKnown); isNew && last.Before(p.openedAt) {
			last = p.openedAt // it has a while to be heard on a new connection
		}
		if now.Sub(last) > silentTime {
			p.silent[by] = struct{}{}
		}
	}
	problems, since := p.problems()
	before := p.reported
	p.reported = fmt.Sprint(p.areSilent, p.silent, problems, since)
	return before != p.reported
}

// known returns up to when everything is known, if the reader knows it up to a time.
func (p *publishers) known(at time.Time) time.Time {
	if p.areSilent && p.heardAt.Before(at) {
		return p.heardAt
	}
	return at
}
