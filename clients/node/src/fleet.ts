import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import type { DiscoveryClient } from "./client.js";
import type { Credential } from "./credential.js";
import { report, StatusError } from "./errors.js";
import type { Cluster } from "./gen/milo/discovery/v1/discovery_pb.js";
import type { RenewingKubeConfig } from "./kubernetes.js";
import type { WatchOptions } from "./options.js";
import type { Event } from "./session.js";
import type { Watch } from "./watch.js";

const BACKOFF_MS = { first: 1000, longest: 60_000 };
const END_LIMIT_MS = 1000; // the program is about to exit
const RELEASE_BACKOFF_MS = { first: 100, longest: 5000 };

/** One engagement of a cluster: the same object from ENGAGED to DISENGAGED. */
export class EngagedCluster {
  constructor(
    /** The credential of the cluster. It is renewed while the cluster is engaged; afterwards, its access throws. */
    readonly credential: Credential,
    /** The current state of the cluster, or its last state before it was disengaged. */
    public current: Cluster,
    /** Aborted when the cluster is disengaged or draining, or the fleet stops. */
    readonly signal: AbortSignal,
  ) {}

  get name(): string {
    return this.current.name;
  }

  /** Return a KubeConfig for @kubernetes/client-node, whose credential is renewed. */
  async kubeConfig(): Promise<RenewingKubeConfig> {
    const { RenewingKubeConfig } = await import("./kubernetes.js"); // an optional dependency
    return await RenewingKubeConfig.open(this.name, this.credential);
  }
}

/** The work on one cluster. It has to end when the signal of the cluster is aborted. */
export type Handler = (cluster: EngagedCluster) => Promise<void>;

export interface FleetOptions extends Omit<WatchOptions, "subscriber"> {
  /** The name under which the fleet releases clusters; by default the hostname with a random suffix. */
  subscriber?: string;
  /** Called with each error of a handler, which is then called again after a backoff unless its signal is aborted. */
  onError?: (cluster: EngagedCluster, error: unknown) => void;
}

interface Member {
  cluster: EngagedCluster;
  end: AbortController;
  done: Promise<void>;
  isReleasing: boolean;
}

/** Runs one handler per engaged cluster. A draining cluster is released when its handler has ended. */
export class Fleet {
  readonly #members = new Map<string, Member>();
  readonly #ending = new Map<string, Promise<void>>();

  constructor(
    private readonly client: DiscoveryClient,
    private readonly options: FleetOptions = {},
  ) {}

  /** The engaged clusters by name. */
  get clusters(): ReadonlyMap<string, EngagedCluster> {
    return new Map([...this.#members].map(([name, { cluster }]) => [name, cluster]));
  }

  /** Run until the signal is aborted and all handlers have ended. Throws errors that a retry cannot fix. */
  async run(handler: Handler): Promise<void> {
    const subscriber = this.options.subscriber ?? `${hostname()}/${Math.random().toString(36).slice(2, 10)}`;
    const watch = this.client.watch({ ...this.options, subscriber });
    try {
      for await (const news of watch.news()) {
        const member = this.#members.get(news.cluster.name);
        if (member) member.cluster.current = news.cluster;
        if (news.type === "ENGAGED") this.#engage(watch, news, handler);
        if (news.type === "DISENGAGED") this.#disengage(news.cluster.name, news.reason);
        // Also with only another incarnation: the daemon waits for a release of this one.
        else if (news.cluster.draining) void this.#drain(watch, news.cluster.name);
      }
    } finally {
      for (const name of this.#members.keys()) this.#disengage(name, "the fleet stopped");
      await Promise.all(this.#ending.values());
      watch.endEngagements();
      // If it fails, drains that have begun, or begin within a minute, wait until their deadline.
      await this.client.call("endSubscription", { subscriber }, END_LIMIT_MS).catch(() => {});
    }
  }

  #engage(watch: Watch, event: Event, handler: Handler): void {
    const end = new AbortController();
    const current = event.cluster;
    const cluster = new EngagedCluster(watch.credential(event), current, end.signal);
    const done = current.draining ? (this.#ending.get(current.name) ?? Promise.resolve()) : this.#work(cluster, handler);
    this.#members.set(current.name, { cluster, end, done, isReleasing: false });
  }

  #disengage(name: string, reason: string): void {
    const member = this.#members.get(name);
    if (!member) return;
    this.#members.delete(name);
    member.end.abort(new Error(reason));
    const ended = member.done.finally(() => {
      if (this.#ending.get(name) === ended) this.#ending.delete(name);
    });
    this.#ending.set(name, ended);
  }

  async #drain(watch: Watch, name: string): Promise<void> {
    const member = this.#members.get(name);
    member?.end.abort(new Error("the cluster is draining"));
    if (!member || member.isReleasing) return;
    member.isReleasing = true;
    await member.done;
    let backoffMs = RELEASE_BACKOFF_MS.first;
    for (let released = ""; this.#members.get(name) === member && released !== member.cluster.current.incarnation; ) {
      released = member.cluster.current.incarnation;
      try {
        await watch.release(name);
      } catch (error) {
        const { isFinal, code, retryAfterMs = 0 } = error instanceof StatusError ? error : {};
        // If another daemon has taken over, it sends the cluster again, with its own incarnation.
        if (isFinal || code === "NOT_FOUND") continue;
        released = "";
        await sleep(retryAfterMs + backoffMs * (0.5 + Math.random() / 2), undefined, { ref: false });
        backoffMs = Math.min(2 * backoffMs, RELEASE_BACKOFF_MS.longest);
      }
    }
    member.isReleasing = false; // the next event of the cluster begins another release
  }

  async #work(cluster: EngagedCluster, handler: Handler): Promise<void> {
    await this.#ending.get(cluster.name); // the handler of an earlier engagement of this name
    for (let backoffMs = BACKOFF_MS.first; !cluster.signal.aborted; backoffMs = Math.min(2 * backoffMs, BACKOFF_MS.longest)) {
      try {
        await handler(cluster);
        return;
      } catch (error) {
        if (cluster.signal.aborted && isAbort(cluster.signal, error)) return; // the handler passed the signal on to a call, which was aborted
        const { onError } = this.options;
        if (onError) report("onError", () => onError(cluster, error));
        else console.error(`the handler of cluster ${cluster.name} failed:`, error);
      }
      await sleep(backoffMs, undefined, { signal: cluster.signal }).catch(() => {});
    }
  }
}

function isAbort(signal: AbortSignal, error: unknown): boolean {
  return error === signal.reason || (error instanceof Error && error.name === "AbortError");
}
