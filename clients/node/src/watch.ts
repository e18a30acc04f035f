import { create } from "@bufbuild/protobuf";
import type { ClientReadableStream } from "@grpc/grpc-js";
import { Credential } from "./credential.js";
import { converted, report, StatusError, StreamBroken } from "./errors.js";
import {
  WatchClustersRequestSchema,
  type Cluster,
  type Kubeconfig,
  type WatchClustersRequest,
  type WatchClustersResponse,
} from "./gen/milo/discovery/v1/discovery_pb.js";
import { usable } from "./kubeconfig.js";
import type { WatchOptions } from "./options.js";
import { Ownership } from "./ownership.js";
import type { Connection, Input, Output, Unary } from "./service.js";
import { Session, type Event, type News } from "./session.js";
import { duration } from "./times.js";

const BACKOFF_MS = { first: 200, longest: 5000 };
const HEALTHY_MS = 10_000; // a stream that lasted this long resets the backoff
const HEARTBEATS_MISSED = 3;

const warn = (error: Error) => console.warn(`no stream from the daemon; retrying: ${error.message}`);

/** The calls to the daemon that a watch makes. */
export interface WatchCalls {
  connect(): Connection;
  openStream(connection: Connection, request: WatchClustersRequest): ClientReadableStream<WatchClustersResponse>;
  call<Name extends Unary>(name: Name, init: Input<Name>, timeoutMs?: number): Promise<Output<Name>>;
  issueCredential(name: string, incarnation: string, isRetry: boolean): Promise<Kubeconfig>;
}

/**
 * A subscription, which outlives its streams: an async iterable of events, which connects on first use. It ends when the signal of its
 * options is aborted, and throws only errors that a retry cannot fix. While the caller handles an event, no further events are read,
 * and the daemon coalesces changes.
 */
export class Watch implements AsyncIterable<Event> {
  readonly #session = new Session({ usable });
  #ownership!: Ownership; // of the current iteration, since it is not renewed between two
  readonly #heartbeatMs: number;
  #backoffMs = BACKOFF_MS.first;
  /** When the first batch of the stream arrived; undefined if none has. */
  #connectedAt: number | undefined;
  /** Ends the current wait if the ownership has changed or the watch was aborted. */
  #wake: () => void = () => {};
  /** Callbacks of callers that wait for a kubeconfig, by cluster name. */
  readonly #listeners = new Map<string, Set<() => void>>();

  constructor(
    private readonly client: WatchCalls,
    private readonly options: WatchOptions,
  ) {
    this.#heartbeatMs = Math.min(Math.max(options.heartbeatIntervalMs ?? 30_000, 1000), 3_600_000);
  }

  /** The subscriber name of releases. Empty unless it is set in the options. */
  get subscriber(): string {
    return this.options.subscriber ?? "";
  }

  /** Return the last known state of the engaged cluster of this name. */
  cluster(name: string): Cluster | undefined {
    return this.#session.view.get(name)?.cluster;
  }

  /** Return the newest kubeconfig that the stream delivered for a cluster. */
  kubeconfig(name: string): Kubeconfig | undefined {
    return this.#session.view.get(name)?.kubeconfig;
  }

  /** Return the credential of an event's engagement. It is renewed, and throws once the engagement has ended. */
  credential({ cluster: { name }, engagement }: Event): Credential {
    const engaged = () => {
      const known = this.#session.view.get(name);
      return known?.engagement === engagement ? known : undefined;
    };
    const issue = (incarnation: string, isRetry: boolean) => this.client.issueCredential(name, incarnation, isRetry);
    return new Credential(name, engaged, issue, (listener) => this.#onEvent(name, listener));
  }

  /** Confirm that the work on a draining cluster has ended. A repeated call is a no-op. */
  async release(name: string): Promise<void> {
    const cluster = this.cluster(name);
    if (cluster === undefined) return; // it is already disengaged
    const { incarnation } = cluster;
    await this.client.call("releaseCluster", { cluster: name, incarnation, subscriber: this.subscriber });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Event> {
    for await (const news of this.news()) if (news.type !== "REFRESHED") yield news;
  }

  /** @internal Iterate over events and other news. */
  async *news(): AsyncGenerator<News> {
    const { signal } = this.options;
    const renew = (timeoutMs: number) => {
      const subscriber = this.#session.view.size > 0 ? this.subscriber : "";
      return this.client.call("renewOwnership", { subscriber }, timeoutMs);
    };
    this.#ownership = new Ownership(renew, () => this.#wake());
    const wake = () => this.#wake();
    signal?.addEventListener("abort", wake);
    try {
      while (!signal?.aborted) {
        while (!this.#ownership.isHeld && !signal?.aborted) {
          yield* this.#notified(this.#session.loseOwnership());
          this.#ownership.acknowledgeLoss();
          if (!this.#ownership.isHeld) await this.#renewed();
        }
        let delayMs: number;
        try {
          for await (const batch of this.#stream()) {
            const news = this.#session.receive(batch);
            this.#connectedAt ??= performance.now();
            yield* this.#notified(news);
          }
          return; // the signal was aborted
        } catch (error) {
          const failure = converted(error);
          if (failure instanceof StatusError && failure.isFinal) throw failure;
          // With jitter: all subscribers of the daemon have got the same time.
          delayMs = this.#nextDelay() + ((failure instanceof StatusError && failure.retryAfterMs) || 0);
          report("onDisconnect", () => (this.options.onDisconnect ?? warn)(failure));
        }
        await this.#sleep(delayMs);
      }
    } finally {
      signal?.removeEventListener("abort", wake);
      this.#ownership.close();
    }
  }

  /** @internal Refuse the credentials of all engagements: no stream tells any more when they end. */
  endEngagements(): void {
    this.#session.drop();
  }

  #onEvent(name: string, listener: () => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => {
      listeners.delete(listener);
      if (listeners.size === 0 && this.#listeners.get(name) === listeners) this.#listeners.delete(name);
    };
  }

  /** Call the listeners of these clusters, after the events were applied to the view. */
  #notified<Each extends News>(news: Each[]): Each[] {
    for (const { type, cluster } of news) {
      if (type === "REFRESHED") continue;
      const listeners = this.#listeners.get(cluster.name);
      this.#listeners.delete(cluster.name);
      listeners?.forEach((listener) => listener());
    }
    return news;
  }

  /** Read one stream, on a new connection. Throws when it ends; returns when the watch is aborted. */
  async *#stream(): AsyncGenerator<WatchClustersResponse> {
    this.#connectedAt = undefined;
    const connection = this.client.connect();
    let stream: ClientReadableStream<WatchClustersResponse> | undefined;
    try {
      const request = this.#request(this.#session.open());
      stream = this.client.openStream(connection, request);
      stream.on("error", () => {}); // the iterator reports it
      const batches = stream[Symbol.asyncIterator]() as AsyncIterator<WatchClustersResponse>;
      for (;;) {
        const next = await this.#within(batches.next());
        if (next === undefined) return;
        if (next.done) throw new StreamBroken("the daemon ended the stream");
        const batch = next.value;
        if (batch.sharded) await this.#ownership.begin();
        if (!this.#ownership.isHeld) throw new StreamBroken("the daemon's ownership of its clusters has expired or is not confirmed");
        yield batch;
      }
    } finally {
      stream?.cancel();
      connection.close();
    }
  }

  /**
   * Wait for a batch. Rejects after three missed heartbeats, or when the ownership is lost; resolves to undefined when the watch is
   * aborted. No Promise.race with promises that outlive this wait: they would keep its result in memory.
   */
  #within<T>(next: Promise<T>): Promise<T | undefined> {
    const limitMs = HEARTBEATS_MISSED * this.#heartbeatMs;
    return new Promise<T | undefined>((resolve, reject) => {
      const timer = setTimeout(() => reject(new StreamBroken(`no heartbeat for ${limitMs / 1000} s`)), limitMs);
      next.then(resolve, reject).finally(() => clearTimeout(timer));
      this.#wake = () => {
        if (this.options.signal?.aborted) resolve(undefined);
        else if (!this.#ownership.isHeld) reject(new StreamBroken("the daemon's ownership of its clusters has expired or is not confirmed"));
        else return;
        clearTimeout(timer);
      };
      this.#wake(); // the ownership or the signal may have changed before this call
    });
  }

  #request(resumeRevision: string) {
    const { labelSelector = "", names = [], organizations = [], sources = [], kubeconfigTtlMs } = this.options;
    return create(WatchClustersRequestSchema, {
      filter: { labelSelector, names, organizations, sources },
      resumeRevision,
      includeKubeconfigs: this.options.includeKubeconfigs ?? false,
      heartbeatInterval: duration(this.#heartbeatMs),
      ...(kubeconfigTtlMs === undefined ? {} : { kubeconfigTtl: duration(kubeconfigTtlMs) }),
      confirmReleases: this.subscriber !== "",
      subscriber: this.subscriber,
      acceptsPendingSources: true,
    });
  }

  /** Return the delay before the next stream. Only a stream that has worked for a while resets it: a snapshot is costly. */
  #nextDelay(): number {
    if (performance.now() - (this.#connectedAt ?? Infinity) >= HEALTHY_MS) this.#backoffMs = BACKOFF_MS.first;
    const delayMs = this.#backoffMs * (0.5 + Math.random() / 2);
    this.#backoffMs = Math.min(2 * this.#backoffMs, BACKOFF_MS.longest);
    return delayMs;
  }

  /** Wait until the ownership may have been renewed, or the watch is aborted. */
  async #renewed(): Promise<void> {
    await new Promise<void>((resolve) => (this.#wake = resolve));
  }

  /** Wait until `ms` have elapsed, the ownership is lost or the watch is aborted. */
  async #sleep(ms: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      timer = setTimeout(resolve, ms);
      this.#wake = () => {
        if (this.options.signal?.aborted || !this.#ownership.isHeld) resolve();
      };
      this.#wake(); // it may have changed before this call
    });
    clearTimeout(timer);
  }
}
