// The view of the fleet. It turns batches into events: across broken connections and daemon restarts, each cluster is
// ENGAGED once and DISENGAGED once.
import { isDeepStrictEqual } from "node:util";

// The cluster without the fields that a restarted daemon assigns again.
const content = ({ engaged_at, incarnation, source_resource_version, connectivity, ...cluster }) => ({
  ...cluster,
  connectivity: connectivity && { state: connectivity.state, message: connectivity.message },
});

// A drain is never canceled: a cluster that no longer drains was disengaged and engaged again.
const wasDrained = (before, now) => before.draining && !now.draining;

export class Fleet {
  clusters = new Map();
  revision = ""; // where to resume
  #snapshot = null; // a snapshot that is still arriving

  // Begin a stream, dropping an incomplete snapshot. Returns the revision to resume from.
  open() {
    this.#snapshot = null;
    return this.revision;
  }

  *apply(batch) {
    if (batch.reset) this.#snapshot = new Map();
    if (this.#snapshot) {
      for (const { type, cluster } of batch.events) {
        if (type === "TYPE_DISENGAGED") this.#snapshot.delete(cluster.name);
        else this.#snapshot.set(cluster.name, cluster);
      }
      if (!batch.synced) return;
      yield* this.#differences(this.#snapshot);
      this.clusters = this.#snapshot;
      this.#snapshot = null;
    } else {
      for (const event of batch.events) {
        if (event.type === "TYPE_DISENGAGED") this.clusters.delete(event.cluster.name);
        else this.clusters.set(event.cluster.name, event.cluster);
        yield event;
      }
    }
    // Resume after complete batches only, and never within a snapshot.
    if (batch.synced) this.revision = batch.revision;
  }

  // Empty the view: the daemon may have lost its clusters to another. The next stream begins with a snapshot.
  *loseOwnership() {
    const [reason, lost] = ["DISENGAGE_REASON_OWNERSHIP_LOST", this.clusters];
    const message = "the daemon did not confirm in time that the cluster is still its own";
    this.clusters = new Map();
    this.#snapshot = null;
    this.revision = "";
    for (const cluster of lost.values()) yield { type: "TYPE_DISENGAGED", cluster, reason, message };
  }

  *#differences(snapshot) {
    const message = "it was missing when the connection to the daemon was restored";
    for (const [name, cluster] of this.clusters) {
      const now = snapshot.get(name);
      if (!now) yield { type: "TYPE_DISENGAGED", cluster, message };
      else if (now.uid !== cluster.uid) yield { type: "TYPE_DISENGAGED", cluster, reason: "DISENGAGE_REASON_REPLACED" };
      else if (wasDrained(cluster, now)) yield { type: "TYPE_DISENGAGED", cluster, reason: cluster.draining.reason };
    }
    for (const [name, cluster] of snapshot) {
      const before = this.clusters.get(name);
      if (before?.uid !== cluster.uid || wasDrained(before, cluster)) yield { type: "TYPE_ENGAGED", cluster };
      else if (!isDeepStrictEqual(content(before), content(cluster))) yield { type: "TYPE_UPDATED", cluster };
    }
  }
}
