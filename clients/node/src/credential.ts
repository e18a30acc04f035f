import { StatusError } from "./errors.js";
import type { Kubeconfig } from "./gen/milo/discovery/v1/discovery_pb.js";
import { readAccess, type Access } from "./kubeconfig.js";
import type { Known } from "./session.js";
import { time } from "./times.js";

/** The most by which its use ends before its expiry, since requests take time to arrive; the shortest interval between requests. */
const MARGIN_MS = 5000;
const BACKOFF_MS = { first: 1000, longest: 30_000 };

interface Current {
  access: Access;
  issuedAt: number;
  refreshAt: number;
  usableUntil: number;
}

/**
 * The credential of one engagement: its access throws an error once the engagement has ended. A valid credential is
 * returned at once, and a new one is requested in the background when it is due for renewal. Callers wait only if there
 * is no valid credential, until the response arrives or the stream pushes a kubeconfig. After a failed request, no
 * other is sent until a backoff has elapsed. Until then, callers without a valid credential get the error of the failed
 * request. After a successful one, none is sent for some seconds, even if this machine's clock is ahead and the new
 * credential seems to be due for renewal, or expired.
 */
export class Credential {
  #current: Current | undefined;
  #endpoint: string | undefined;
  #pushed: Kubeconfig | undefined;
  #renewing: Promise<void> | undefined;
  #backoffMs = BACKOFF_MS.first;
  #failure: { error: unknown } | undefined; // of the last request
  #notBefore = 0; // no request before this time, of a clock that is not set back

  /** @internal */
  constructor(
    private readonly name: string,
    /** Returns the current state of the engaged cluster; undefined once the engagement has ended. */
    private readonly engaged: () => Known | undefined,
    private readonly issue: (incarnation: string, isRetry: boolean) => Promise<Kubeconfig>,
    /** Calls a listener once, at the next event of the cluster. Returns a function that removes the listener. */
    private readonly onEvent: (listener: () => void) => () => void,
  ) {}

  /** Return the credential to use now. Throws an error with the reason if there is none. */
  async access(): Promise<Access> {
    for (;;) {
      const { kubeconfig, cluster } = this.#require();
      if (cluster.endpoint !== this.#endpoint) {
        this.#current = this.#renewing = this.#failure = undefined; // another project may have the former endpoint
        this.#notBefore = 0;
      }
      this.#endpoint = cluster.endpoint;
      if (kubeconfig && kubeconfig !== this.#pushed) this.#offer((this.#pushed = kubeconfig), 0.25); // the stream is expected to push the next one too
      const now = Date.now();
      const mayRequest = performance.now() >= this.#notBefore;
      if (this.#current !== undefined && now < this.#current.usableUntil) {
        if (mayRequest && now >= this.#current.refreshAt) this.#renew().catch(() => {});
        return this.#current.access;
      }
      if (!mayRequest && !this.#renewing) {
        if (this.#failure) throw this.#failure.error;
        if (this.#current) return this.#current.access; // it was issued just now: the clocks do not agree
      }
      if (await this.#renewedBeforeNextEvent()) {
        this.#require(); // the cluster may have been disengaged during the wait
        if (this.#current) return this.#current.access; // otherwise the endpoint changed during the request
      }
    }
  }

  #require(): Known {
    const known = this.engaged();
    if (!known) throw new StatusError("NOT_FOUND", `the engagement of cluster ${this.name} has ended: its credential must not be used`);
    return known;
  }

  /** Wait for the renewal, or an event of the cluster, such as a kubeconfig or DISENGAGED. Resolves to false after an event. */
  #renewedBeforeNextEvent(): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const forget = this.onEvent(() => resolve(false));
      this.#renew()
        .then(() => resolve(true), reject)
        .finally(forget);
    });
  }

  #renew(): Promise<void> {
    if (this.#renewing) return this.#renewing;
    const renewing = this.#issue().finally(() => {
      if (this.#renewing === renewing) this.#renewing = undefined; // otherwise the endpoint has changed
    });
    return (this.#renewing = renewing);
  }

  async #issue(): Promise<void> {
    const { incarnation, endpoint } = this.#require().cluster;
    const isCurrent = () => this.engaged()?.cluster.endpoint === endpoint;
    try {
      const issued = await this.issue(incarnation, this.#failure !== undefined);
      if (isCurrent()) this.#notBefore = performance.now() + this.#offer(issued, 0);
    } catch (error) {
      if (!isCurrent()) return; // the result is that of a former endpoint
      const requestedMs = (error instanceof StatusError && error.retryAfterMs) || 0;
      this.#failure = { error };
      this.#notBefore = performance.now() + requestedMs + this.#backoffMs * (0.5 + Math.random() / 2);
      this.#backoffMs = Math.min(2 * this.#backoffMs, BACKOFF_MS.longest);
      throw error;
    }
  }

  /** Use a kubeconfig, unless the current one is newer. Returns by how many milliseconds its use ends before its expiry. */
  #offer(kubeconfig: Kubeconfig, wait: number): number {
    const expiresAt = time(kubeconfig.expiresAt) ?? Infinity;
    const issuedAt = time(kubeconfig.issuedAt) ?? -Infinity;
    const refreshAt = time(kubeconfig.refreshAfter) ?? Infinity;
    const access = readAccess(kubeconfig);
    const marginMs = Math.max(0, Math.min(MARGIN_MS, 0.1 * (expiresAt - issuedAt)));
    // A response can arrive after the stream has pushed a newer kubeconfig, which may be for another server.
    // If the current one was issued in the future, the clocks do not agree, or one was set back since.
    if (this.#current === undefined || issuedAt >= this.#current.issuedAt || this.#current.issuedAt > Date.now()) {
      this.#current = {
        access,
        issuedAt,
        refreshAt: Number.isFinite(expiresAt) ? refreshAt + wait * (expiresAt - refreshAt) : refreshAt,
        usableUntil: expiresAt - marginMs,
      };
    }
    this.#failure = undefined;
    this.#notBefore = 0;
    this.#backoffMs = BACKOFF_MS.first;
    return marginMs;
  }
}
