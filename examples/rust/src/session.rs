//! Converts batches to events, without I/O. Each engagement has one ENGAGED and one DISENGAGED, across connections and daemons.

use std::collections::{HashMap, HashSet};

use crate::kubeconfig;
use crate::proto::cluster_event::Type;
use crate::proto::{Cluster, ClusterEvent, DisengageReason, Kubeconfig, WatchClustersResponse};

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Engaged(Cluster, Option<Kubeconfig>),
    Updated(Cluster),
    Renewed(Cluster, Kubeconfig),
    /// The reason `Unspecified` means that a snapshot lacks the cluster, or that this client does not know the reason:
    /// do not treat it as deleted.
    Disengaged(Cluster, DisengageReason),
}

#[derive(Clone)]
struct Known {
    cluster: Cluster,
    kubeconfig: Option<Kubeconfig>,
}

type View = HashMap<String, Known>;

enum Phase {
    Closed,
    Opened,
    AwaitingSnapshot,
    ReceivingSnapshot(View),
    Live,
}

/// The view, the resume revision, and the phase of the current stream. It outlives streams.
pub struct Session {
    view: View,
    revision: String,
    last: String,
    phase: Phase,
}

/// A longer revision is not resumed from: a daemon that refuses long requests would refuse it again and again.
const LONGEST_REVISION: usize = 16 * 1024;

/// Why a batch was refused. The caller has to open a new stream.
#[derive(Debug)]
pub struct Broken(pub String);

impl Session {
    pub fn new() -> Self {
        Session { view: View::new(), revision: String::new(), last: String::new(), phase: Phase::Closed }
    }

    /// Begin a new stream, drop an incomplete snapshot, and return the revision to resume from.
    pub fn open(&mut self) -> String {
        if self.revision.len() > LONGEST_REVISION {
            self.revision.clear();
        }
        self.phase = Phase::Opened;
        self.last = self.revision.clone();
        self.revision.clone()
    }

    /// Apply a batch. A batch that is refused has no effect.
    pub fn receive(&mut self, batch: WatchClustersResponse) -> Result<Vec<Event>, Broken> {
        let phase = std::mem::replace(&mut self.phase, Phase::Closed); // remains closed if the batch is invalid
        if batch.reset {
            return Ok(self.receive_snapshot(View::new(), batch)); // the stream starts over, so no earlier batch can be missing
        }
        match phase {
            Phase::Closed => Err(Broken("a batch arrived on a stream that is not open".into())),
            Phase::Opened if batch.synced && self.last.is_empty() => {
                Err(Broken("a new stream began without a snapshot".into()))
            }
            Phase::Opened if batch.synced => self.apply(batch),
            Phase::Opened => {
                self.last.clear(); // the daemon does not resume
                self.await_snapshot(batch)
            }
            Phase::AwaitingSnapshot => self.await_snapshot(batch),
            Phase::ReceivingSnapshot(snapshot) => {
                self.require_next(&batch)?;
                Ok(self.receive_snapshot(snapshot, batch))
            }
            Phase::Live => self.apply(batch),
        }
    }

    fn await_snapshot(&mut self, batch: WatchClustersResponse) -> Result<Vec<Event>, Broken> {
        self.require_next(&batch)?;
        if batch.synced || !batch.events.is_empty() {
            return Err(self.contradiction("events or `synced` arrived before the snapshot".into()));
        }
        self.last = batch.revision;
        self.phase = Phase::AwaitingSnapshot;
        Ok(Vec::new())
    }

    fn receive_snapshot(&mut self, mut snapshot: View, batch: WatchClustersResponse) -> Vec<Event> {
        self.last = batch.revision.clone();
        for event in batch.events {
            let Some((kind, cluster, kubeconfig)) = parts(event) else { continue };
            if kind == Type::Disengaged {
                snapshot.remove(&cluster.name);
            } else {
                let before = snapshot.remove(&cluster.name).and_then(|known| known.kubeconfig);
                snapshot.insert(cluster.name.clone(), Known { cluster, kubeconfig: kubeconfig.or(before) });
            }
        }
        if !batch.synced {
            self.phase = Phase::ReceivingSnapshot(snapshot);
            return Vec::new();
        }
        let pending: HashSet<String> = batch.pending_sources.into_iter().collect();
        for (name, known) in &self.view {
            if pending.contains(&known.cluster.source) && !snapshot.contains_key(name) {
                snapshot.insert(name.clone(), known.clone());
            }
        }
        let events = self.differences(&snapshot);
        self.view = snapshot;
        self.revision = batch.revision;
        self.phase = Phase::Live;
        events
    }

    fn differences(&self, snapshot: &View) -> Vec<Event> {
        let missing = self.view.values().filter(|known| !snapshot.contains_key(&known.cluster.name));
        let mut events: Vec<Event> =
            missing.map(|known| Event::Disengaged(known.cluster.clone(), DisengageReason::Unspecified)).collect();
        for (name, now) in snapshot {
            let Some(before) = self.view.get(name) else {
                events.push(Event::Engaged(now.cluster.clone(), now.kubeconfig.clone()));
                continue;
            };
            if let Some(reason) = end_of(&before.cluster, &now.cluster) {
                events.push(Event::Disengaged(before.cluster.clone(), reason));
                events.push(Event::Engaged(now.cluster.clone(), now.kubeconfig.clone()));
                continue;
            }
            if content(&before.cluster) != content(&now.cluster) {
                events.push(Event::Updated(now.cluster.clone()));
            }
            match &now.kubeconfig {
                Some(kubeconfig) if before.kubeconfig.as_ref() != Some(kubeconfig) => {
                    events.push(Event::Renewed(now.cluster.clone(), kubeconfig.clone()));
                }
                _ => {}
            }
        }
        events
    }

    fn apply(&mut self, batch: WatchClustersResponse) -> Result<Vec<Event>, Broken> {
        self.require_next(&batch)?;
        if !batch.synced {
            return Err(self.contradiction("`synced` became false without a reset".into()));
        }
        let mut changed: HashMap<String, Option<Known>> = HashMap::new(); // None: disengaged
        let mut events = Vec::new();
        for event in batch.events {
            let reason = event.reason();
            let Some((kind, cluster, kubeconfig)) = parts(event) else { continue };
            let name = cluster.name.clone();
            let before = changed.get(&name).cloned().unwrap_or_else(|| self.view.get(&name).cloned());
            if before.is_none() != (kind == Type::Engaged) {
                let state = if before.is_none() { "not engaged" } else { "engaged" };
                return Err(self.contradiction(format!("{} for {name}, which is {state}", kind.as_str_name())));
            }
            match kind {
                Type::Engaged => events.push(Event::Engaged(cluster.clone(), kubeconfig.clone())),
                Type::Updated => events.push(Event::Updated(cluster.clone())),
                Type::Disengaged => events.push(Event::Disengaged(cluster.clone(), reason)),
                _ => events.extend(kubeconfig.clone().map(|renewed| Event::Renewed(cluster.clone(), renewed))),
            }
            let kubeconfig = kubeconfig.or(before.and_then(|known| known.kubeconfig));
            changed.insert(name, (kind != Type::Disengaged).then_some(Known { cluster, kubeconfig }));
        }
        for (name, known) in changed {
            match known {
                Some(known) => self.view.insert(name, known),
                None => self.view.remove(&name),
            };
        }
        self.revision = batch.revision.clone();
        self.last = batch.revision;
        self.phase = Phase::Live;
        Ok(events)
    }

    fn require_next(&self, batch: &WatchClustersResponse) -> Result<(), Broken> {
        if batch.previous_revision == self.last {
            return Ok(());
        }
        Err(Broken(format!("a batch is missing: expected one after '{}', got one after '{}'", self.last, batch.previous_revision)))
    }

    /// Drop the resume revision, since only a snapshot can resolve the contradiction, and return the error.
    fn contradiction(&mut self, detail: String) -> Broken {
        self.revision.clear();
        Broken(detail)
    }
}

/// Return the components of an event; None for event types of a newer daemon, and without a cluster. Kubeconfigs that
/// `read` refuses are omitted.
fn parts(event: ClusterEvent) -> Option<(Type, Cluster, Option<Kubeconfig>)> {
    let kind = Type::try_from(event.r#type).ok().filter(|kind| *kind != Type::Unspecified)?;
    let kubeconfig = event.kubeconfig.filter(|kubeconfig| match kubeconfig::read(kubeconfig) {
        Ok(_) => true,
        Err(problem) => {
            eprintln!("kubeconfig of cluster {} refused: {problem}", kubeconfig.cluster);
            false
        }
    });
    Some((kind, event.cluster?, kubeconfig))
}

/// Return why the former engagement has ended, if the cluster in a snapshot is a new engagement; otherwise None.
fn end_of(before: &Cluster, now: &Cluster) -> Option<DisengageReason> {
    if before.uid != now.uid {
        return Some(DisengageReason::Replaced);
    }
    before.draining.as_ref().filter(|_| now.draining.is_none()).map(|draining| draining.reason())
}

/// Return the cluster without the fields that the daemon assigns.
fn content(cluster: &Cluster) -> Cluster {
    let mut content = cluster.clone();
    content.engaged_at = None;
    content.incarnation.clear();
    content.source_resource_version.clear();
    if let Some(connectivity) = &mut content.connectivity {
        connectivity.since = None;
    }
    content
}
