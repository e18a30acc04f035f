import { StatusError } from "./errors.js";
import type { Kubeconfig } from "./gen/milo/discovery/v1/discovery_pb.js";
import { readAccess, type Access } from "./kubeconfig.js";
import type { Known } from "./session.js";
import { time } from "./watch.js";

const MARGIN_MS = 5000; // the most by which its use ends before its expiry, since requests take time to arrive
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
 * request.
 */
export class Credential {
  #current: Current | undefined;
  #endpoint: string | undefined;
  #pushed: Kubeconfig | undefined;
  #renewing: Promise<void> | undefined;
  #backoffMs = BACKOFF_MS.first;
  #failure: { error: unknown; retryAt: number } | undefined;

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
      if (cluster.endpoint !== this.#endpoint) this.#current = undefined; // another project may have the former endpoint
      this.#endpoint = cluster.endpoint;
      if (kubeconfig && kubeconfig !== this.#pushed) this.#offer((this.#pushed = kubeconfig), 0.25); // the stream is expected to push the next one too
      const now = Date.now();
      const mayRequest = now >= (this.#failure?.retryAt ?? 0);
      if (this.#current !== undefined && now < this.#current.usableUntil) {
        if (mayRequest && now >= this.#current.refreshAt) this.#renew().catch(() => {});
        return this.#current.access;
      }
      if (!mayRequest && !this.#renewing) throw this.#failure?.error;
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
    this.#renewing ??= this.#issue().finally(() => (this.#renewing = undefined));
    return this.#renewing;
  }

  async #issue(): Promise<void> {
    try {
      const { incarnation, endpoint } = this.#require().cluster;
      const issued = await this.issue(incarnation, this.#failure !== undefined);
      if (this.engaged()?.cluster.endpoint === endpoint) this.#offer(issued, 0);
    } catch (error) {
      const requestedMs = (error instanceof StatusError && error.retryAfterMs) || 0;
      this.#failure = { error, retryAt: Date.now() + Math.max(requestedMs, this.#backoffMs * (0.5 + Math.random() / 2)) };
      this.#backoffMs = Math.min(2 * this.#backoffMs, BACKOFF_MS.longest);
      throw error;
    }
  }

  #offer(kubeconfig: Kubeconfig, wait: number): void {
    const expiresAt = time(kubeconfig.expiresAt) ?? Infinity;
    const issuedAt = time(kubeconfig.issuedAt) ?? -Infinity;
    const refreshAt = time(kubeconfig.refreshAfter) ?? Infinity;
    const access = readAccess(kubeconfig);
    // A response can arrive after the stream has pushed a newer kubeconfig, which may be for another server.
    // If the current one was issued in the future, the clocks do not agree, or one was set back since.
    if (this.#current === undefined || issuedAt >= this.#current.issuedAt || this.#current.issuedAt > Date.now()) {
      this.#current = {
        access,
        issuedAt,
        refreshAt: Number.isFinite(expiresAt) ? refreshAt + wait * (expiresAt - refreshAt) : refreshAt,
        usableUntil: expiresAt - Math.max(0, Math.min(MARGIN_MS, 0.1 * (expiresAt - issuedAt))),
      };
    }
    this.#failure = undefined;
    this.#backoffMs = BACKOFF_MS.first;
  }
}
