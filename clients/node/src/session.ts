import { clone, equals } from "@bufbuild/protobuf";
import { StreamBroken } from "./errors.js";
import {
  ClusterEvent_Type as Type,
  ClusterSchema,
  DisengageReason as Reason,
  KubeconfigSchema,
  type Cluster,
  type ClusterEvent,
  type Kubeconfig,
  type WatchClustersResponse,
} from "./gen/milo/discovery/v1/discovery_pb.js";

/** A longer revision is not resumed from: a daemon that refuses long requests would refuse it again and again. */
const LONGEST_REVISION = 16 * 1024;

/** The name of a DisengageReason. */
export type DisengageReasonName = keyof typeof Reason;

/**
 * A change to one cluster. `cluster` is complete in every type; for DISENGAGED it is the last known state. `engagement` identifies the
 * engagement: it is the same symbol from ENGAGED to DISENGAGED, and differs from every other engagement's.
 */
export type Event = { cluster: Cluster; engagement: symbol } & (
  | { type: "ENGAGED" | "KUBECONFIG"; kubeconfig?: Kubeconfig | undefined }
  | { type: "UPDATED" }
  | { type: "DISENGAGED"; reason: DisengageReasonName; message: string }
);

/** An event, or a change of only those fields that the daemon assigns, such as the incarnation: users are not notified of it. */
export type News = Event | { type: "REFRESHED"; cluster: Cluster; engagement: symbol };

/** The last known state of an engaged cluster. */
export interface Known {
  cluster: Cluster;
  engagement: symbol;
  kubeconfig?: Kubeconfig | undefined;
}

type Phase =
  | { name: "closed" }
  | { name: "opened"; resuming: string }
  | { name: "awaiting snapshot" | "live"; last: string }
  | { name: "receiving snapshot"; last: string; snapshot: Map<string, Known> };

/**
 * Converts batches to news, without I/O. It outlives connections and daemons, and reports one ENGAGED and one DISENGAGED for each
 * engagement.
 *
 * A complete snapshot is reported as its differences from the view. A cluster with the same name and UID is the same engagement, even
 * with another incarnation. But if a cluster was draining, and is not any more, it was disengaged and engaged again. A
 * batch is applied completely or not at all; the resume revision is that of the last applied batch.
 */
export class Session {
  readonly view = new Map<string, Known>();
  revision = "";
  #phase: Phase = { name: "closed" };
  readonly #usable: (kubeconfig: Kubeconfig | undefined) => Kubeconfig | undefined;

  constructor(options: { usable: (kubeconfig: Kubeconfig | undefined) => Kubeconfig | undefined }) {
    this.#usable = options.usable;
  }

  /** Begin a new stream, and drop an incomplete snapshot. Returns the revision to resume from. */
  open(): string {
    if (this.revision.length > LONGEST_REVISION) this.revision = "";
    this.#phase = { name: "opened", resuming: this.revision };
    return this.revision;
  }

  /** Apply a batch. If it contradicts the view, or does not continue the previous batch, throws StreamBroken and applies none of it. */
  receive(batch: WatchClustersResponse): News[] {
    const phase = this.#phase;
    this.#phase = { name: "closed" }; // remains closed if the batch is invalid
    if (batch.reset) return this.#receiveSnapshot(new Map(), batch); // the stream starts over, so no earlier batch can be missing
    switch (phase.name) {
      case "closed":
        throw new StreamBroken("a batch arrived on a stream that is not open");
      case "opened":
        if (!batch.synced) return this.#awaitSnapshot("", batch);
        if (!phase.resuming) throw new StreamBroken("a new stream began without a snapshot");
        return this.#apply(phase.resuming, batch);
      case "awaiting snapshot":
        return this.#awaitSnapshot(phase.last, batch);
      case "receiving snapshot":
        requireNext(phase.last, batch);
        return this.#receiveSnapshot(phase.snapshot, batch);
      case "live":
        return this.#apply(phase.last, batch);
    }
  }

  /** Disengage all clusters: another daemon may have engaged them. The next stream begins with a snapshot. */
  loseOwnership(): Event[] {
    const lost = [...this.view.values()].map((known) =>
      disengaged(known, Reason.OWNERSHIP_LOST, "the daemon did not confirm in time that it still owns the cluster"),
    );
    this.drop();
    return lost;
  }

  /** Forget all clusters. The next stream begins with a snapshot. */
  drop(): void {
    this.view.clear();
    this.#phase = { name: "closed" };
    this.revision = "";
  }

  #awaitSnapshot(last: string, batch: WatchClustersResponse): News[] {
    requireNext(last, batch);
    if (batch.events.length > 0 || batch.synced) throw this.#contradiction("events or `synced` arrived before the snapshot");
    this.#phase = { name: "awaiting snapshot", last: batch.revision };
    return [];
  }

  #receiveSnapshot(snapshot: Map<string, Known>, batch: WatchClustersResponse): News[] {
    for (const event of batch.events) {
      const name = event.cluster?.name ?? "";
      if (event.type === Type.DISENGAGED) snapshot.delete(name);
      else if (isKnown(event.type)) snapshot.set(name, this.#known(event, snapshot.get(name)));
    }
    if (!batch.synced) {
      this.#phase = { name: "receiving snapshot", last: batch.revision, snapshot };
      return [];
    }
    const pending = new Set(batch.pendingSources);
    for (const [name, before] of this.view) {
      const now = snapshot.get(name);
      if (now && endOf(before.cluster, now.cluster) === undefined) now.engagement = before.engagement;
      else if (!now && pending.has(before.cluster.source)) snapshot.set(name, before);
    }
    const news = [...this.#differences(snapshot)];
    this.view.clear();
    for (const [name, now] of snapshot) this.view.set(name, now);
    this.revision = batch.revision;
    this.#phase = { name: "live", last: batch.revision };
    return news;
  }

  *#differences(snapshot: Map<string, Known>): Generator<News> {
    for (const [name, known] of this.view) {
      if (!snapshot.has(name)) {
        yield disengaged(known, Reason.UNSPECIFIED, "it is missing from the daemon's latest snapshot");
      }
    }
    for (const [name, now] of snapshot) {
      const before = this.view.get(name);
      const end = before && endOf(before.cluster, now.cluster);
      if (!before) {
        yield { type: "ENGAGED", ...now };
      } else if (end !== undefined) {
        yield disengaged(before, end);
        yield { type: "ENGAGED", ...now };
      } else {
        if (!sameContent(before.cluster, now.cluster)) yield updated(now);
        else if (!equals(ClusterSchema, before.cluster, now.cluster)) yield { ...updated(now), type: "REFRESHED" };
        if (now.kubeconfig && !(before.kubeconfig && equals(KubeconfigSchema, before.kubeconfig, now.kubeconfig))) {
          yield { type: "KUBECONFIG", ...now };
        }
      }
    }
  }

  #apply(last: string, batch: WatchClustersResponse): Event[] {
    requireNext(last, batch);
    if (!batch.synced) throw this.#contradiction("`synced` became false without a reset");
    const changed = new Map<string, Known | undefined>();
    const events: Event[] = [];
    for (const event of batch.events) {
      if (!isKnown(event.type)) continue;
      const name = event.cluster?.name ?? "";
      const before = changed.has(name) ? changed.get(name) : this.view.get(name);
      if ((before === undefined) !== (event.type === Type.ENGAGED)) {
        throw this.#contradiction(`${Type[event.type]} for ${name}, which is ${before ? "" : "not "}engaged`);
      }
      const after = this.#known(event, before);
      changed.set(name, event.type === Type.DISENGAGED ? undefined : after);
      if (event.type === Type.DISENGAGED) events.push(disengaged(after, event.reason, event.message));
      else if (event.type === Type.UPDATED) events.push(updated(after));
      else if (event.type === Type.ENGAGED) events.push({ type: "ENGAGED", ...after });
      else if (after.kubeconfig !== before?.kubeconfig) events.push({ type: "KUBECONFIG", ...after });
    }
    for (const [name, now] of changed) {
      if (now) this.view.set(name, now);
      else this.view.delete(name);
    }
    this.revision = batch.revision;
    this.#phase = { name: "live", last: batch.revision };
    return events;
  }

  #known(event: ClusterEvent, before: Known | undefined): Known {
    if (!event.cluster) throw new StreamBroken("an event has no cluster");
    const engagement = before?.engagement ?? Symbol(event.cluster.name);
    // The kubeconfig of a former endpoint would send its credential there, where another project may be.
    const kept = before?.cluster.endpoint === event.cluster.endpoint ? before.kubeconfig : undefined;
    return { cluster: event.cluster, engagement, kubeconfig: this.#usable(event.kubeconfig) ?? kept };
  }

  /** Drop the resume revision, since only a snapshot can resolve the contradiction, and return the error. */
  #contradiction(detail: string): StreamBroken {
    this.revision = "";
    return new StreamBroken(detail);
  }
}

function requireNext(last: string, { previousRevision }: WatchClustersResponse): void {
  if (previousRevision !== last) {
    throw new StreamBroken(`a batch is missing: expected one after '${last}', got one after '${previousRevision}'`);
  }
}

function isKnown(type: Type): boolean {
  return type !== Type.UNSPECIFIED && type in Type;
}

function updated({ cluster, engagement }: Known): Event {
  return { type: "UPDATED", cluster, engagement };
}

function disengaged({ cluster, engagement }: Known, reason: Reason, message = ""): Event {
  return { type: "DISENGAGED", cluster, engagement, reason: (Reason[reason] ?? "UNSPECIFIED") as DisengageReasonName, message };
}

/** Return why the former engagement has ended, if the cluster in a snapshot is a new engagement; otherwise undefined. */
function endOf(before: Cluster, now: Cluster): Reason | undefined {
  if (before.uid !== now.uid) return Reason.REPLACED;
  return before.draining && !now.draining ? before.draining.reason : undefined;
}

/** Compare clusters without the fields that the daemon assigns. */
function sameContent(a: Cluster, b: Cluster): boolean {
  return equals(ClusterSchema, content(a), content(b));
}

function content(cluster: Cluster): Cluster {
  const copy = clone(ClusterSchema, cluster);
  copy.engagedAt = undefined;
  copy.incarnation = copy.sourceResourceVersion = "";
  if (copy.connectivity) copy.connectivity.since = undefined;
  return copy;
}
