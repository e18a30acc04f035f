package session

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "go.miloapis.com/discovery/v1"
)

// These tests apply arbitrary sequences of changes, lost batches, broken connections, restarts and compactions.
// Whenever all batches have arrived, the user's view must equal the daemon's; ENGAGED and DISENGAGED of a cluster must
// alternate.

const (
	modelSeeds = 300
	modelSteps = 150
)

func TestViewEqualsThatOfTheDaemonAfterRandomFaults(t *testing.T) {
	for seed := range uint64(modelSeeds) {
		random := rand.New(rand.NewPCG(seed, 0))
		steps := make([]byte, modelSteps)
		for i := range steps {
			steps[i] = byte(random.UintN(256))
		}
		if err := play(steps); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func FuzzSubscription(f *testing.F) {
	f.Add([]byte{0, 1, 2, 8, 3, 9, 4, 10, 6, 9, 7, 9})
	f.Fuzz(func(t *testing.T, steps []byte) {
		if err := play(steps); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzBatches applies arbitrary batches: one that is rejected must not change the view.
func FuzzBatches(f *testing.F) {
	for _, each := range sharedCases(f) {
		var batches [][]byte
		for _, step := range each.Steps {
			var batch pb.WatchClustersResponse
			if step.Batch != nil && protojson.Unmarshal(step.Batch, &batch) == nil {
				data, err := proto.Marshal(&batch)
				if err != nil {
					f.Fatal(err)
				}
				batches = append(batches, data)
			}
		}
		for i := range len(batches) - 1 {
			f.Add(batches[i], batches[i+1])
		}
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var session Session
		session.Open()
		for _, data := range [][]byte{first, second} {
			var batch pb.WatchClustersResponse
			if proto.Unmarshal(data, &batch) != nil {
				continue
			}
			before := maps.Clone(session.view)
			if _, err := session.Receive(&batch); err != nil && !maps.Equal(before, session.view) {
				t.Fatalf("a rejected batch (%v) changed the view", err)
			}
		}
	})
}

// fakeDaemon is a fleet, a log of batches, and the batches in flight to one subscriber.
type fakeDaemon struct {
	fleet     map[string]*pb.Cluster
	log       [][]*pb.ClusterEvent
	starts    int
	projects  int
	compacted int
	inFlight  []*pb.WatchClustersResponse
}

func (d *fakeDaemon) revision(position int) string { return fmt.Sprintf("%d:%d", d.starts, position) }

func (d *fakeDaemon) restart() {
	d.starts++
	d.log, d.compacted = nil, 0
	for name, cluster := range d.fleet {
		again := proto.CloneOf(cluster)
		again.Incarnation = fmt.Sprintf("%d/%s", d.starts, cluster.GetUid())
		d.fleet[name] = again
	}
}

func (d *fakeDaemon) commit(events ...*pb.ClusterEvent) {
	at := len(d.log)
	d.log = append(d.log, events)
	d.inFlight = append(d.inFlight, d.batch(at))
}

func (d *fakeDaemon) batch(at int) *pb.WatchClustersResponse {
	return &pb.WatchClustersResponse{
		Events:           d.log[at],
		PreviousRevision: d.revision(at),
		Revision:         d.revision(at + 1),
		Synced:           true,
	}
}

func (d *fakeDaemon) engage(name string) *pb.ClusterEvent {
	d.projects++
	uid := fmt.Sprintf("uid-%d", d.projects)
	d.fleet[name] = &pb.Cluster{Name: name, Uid: uid, Incarnation: fmt.Sprintf("%d/%s", d.starts, uid)}
	return &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_ENGAGED, Cluster: d.fleet[name]}
}

// open replaces the batches in flight by those of a new stream that resumes from a revision.
func (d *fakeDaemon) open(resume string) {
	d.inFlight = nil
	now := len(d.log)
	for at := d.compacted; at <= now; at++ {
		if resume != d.revision(at) {
			continue
		}
		for ; at < now; at++ {
			d.inFlight = append(d.inFlight, d.batch(at))
		}
		if len(d.inFlight) == 0 {
			d.heartbeat()
		}
		return
	}
	names := slices.Sorted(maps.Keys(d.fleet))
	previous := ""
	for i := range max(1, len(names)) {
		batch := &pb.WatchClustersResponse{
			PreviousRevision: previous,
			Revision:         fmt.Sprintf("%s/%d", d.revision(now), i),
			Reset_:           i == 0,
			Synced:           i >= len(names)-1,
		}
		if len(names) > 0 {
			event := &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_ENGAGED, Cluster: d.fleet[names[i]]}
			batch.Events = []*pb.ClusterEvent{event}
		}
		if batch.Synced {
			batch.Revision = d.revision(now)
		}
		previous = batch.Revision
		d.inFlight = append(d.inFlight, batch)
	}
}

func (d *fakeDaemon) heartbeat() {
	now := d.revision(len(d.log))
	d.inFlight = append(d.inFlight, &pb.WatchClustersResponse{PreviousRevision: now, Revision: now, Synced: true})
}

// user applies the changes that it received, and checks their order.
type user struct {
	engaged map[string]*pb.Cluster
}

func (u *user) apply(changes []Change) error {
	for _, change := range changes {
		name := change.Cluster.GetName()
		known, ok := u.engaged[name]
		switch {
		case ok == (change.Kind == Engaged):
			return fmt.Errorf("got %v for cluster %q, whose engaged state is %t", change.Kind, name, ok)
		case ok && known.GetUid() != change.Cluster.GetUid():
			return fmt.Errorf("got %v for cluster %q with another UID than that of ENGAGED", change.Kind, name)
		}
		u.engaged[name] = change.Cluster
		if change.Kind == Disengaged {
			delete(u.engaged, name)
		}
	}
	return nil
}

func play(steps []byte) error {
	daemon := &fakeDaemon{fleet: map[string]*pb.Cluster{}, starts: 1}
	user := &user{engaged: map[string]*pb.Cluster{}}
	var session Session
	daemon.open(session.Open())
	receive := func() error {
		batch := daemon.inFlight[0]
		daemon.inFlight = daemon.inFlight[1:]
		result, err := session.Receive(batch)
		if err != nil {
			return err
		}
		return user.apply(result.Changes)
	}
	for at, step := range steps {
		name := string('a' + step/16%4)
		cluster, engaged := daemon.fleet[name]
		var err error
		switch step % 11 {
		case 0, 1: // engage or replace
			var events []*pb.ClusterEvent
			if engaged {
				replaced := pb.DisengageReason_DISENGAGE_REASON_REPLACED
				event := &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_DISENGAGED, Cluster: cluster, Reason: replaced}
				events = append(events, event)
			}
			daemon.commit(append(events, daemon.engage(name))...)
		case 2: // disengage
			if engaged {
				delete(daemon.fleet, name)
				daemon.commit(&pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_DISENGAGED, Cluster: cluster})
			}
		case 3: // update
			if engaged {
				changed := proto.CloneOf(cluster)
				changed.Suspended = !cluster.GetSuspended()
				daemon.fleet[name] = changed
				daemon.commit(&pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_UPDATED, Cluster: changed})
			}
		case 4:
			daemon.heartbeat()
		case 5: // the connection breaks
			daemon.open(session.Open())
		case 6: // the daemon compacts its log
			daemon.compacted = len(daemon.log)
		case 7:
			daemon.restart()
			daemon.open(session.Open())
		case 8: // a batch is lost
			if len(daemon.inFlight) > 1 {
				lost := daemon.inFlight[0]
				daemon.inFlight = daemon.inFlight[1:]
				for err == nil && len(daemon.inFlight) > 0 {
					err = receive()
				}
				if err == nil && len(lost.GetEvents()) > 0 {
					err = errors.New("a lost batch was not detected")
				} else if errors.Is(err, ErrBroken) {
					err = nil
				}
				daemon.open(session.Open())
			}
		case 9: // a batch arrives
			if len(daemon.inFlight) > 0 {
				err = receive()
			}
		case 10: // everything arrives
			for err == nil && len(daemon.inFlight) > 0 {
				err = receive()
			}
			if err == nil && !maps.EqualFunc(user.engaged, daemon.fleet, sameCluster) {
				err = fmt.Errorf("got clusters %v in the user's view, want those of the daemon: %v", user.engaged, daemon.fleet)
			}
		}
		if err == nil && !maps.EqualFunc(user.engaged, session.view, isCluster) {
			err = fmt.Errorf("got clusters %v in the user's view, want those of the session: %v", user.engaged, session.view)
		}
		if err != nil {
			return fmt.Errorf("step %d (%d): %w", at, step, err)
		}
	}
	return nil
}

func sameCluster(a, b *pb.Cluster) bool { return proto.Equal(a, b) }

func isCluster(cluster *pb.Cluster, known Known) bool { return proto.Equal(cluster, known.Cluster) }
