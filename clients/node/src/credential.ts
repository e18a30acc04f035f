import type { DiscoveryClient } from "./client.js";
import type { Kubeconfig } from "./gen/milo/discovery/v1/discovery_pb.js";
import { readAccess, type Access } from "./kubeconfig.js";
import { time } from "./watch.js";

const MARGIN_MS = 5000; // a credential is not used shortly before it expires, since the request takes time to arrive
const RETRY_MS = 1000;

interface Current {
  access: Access;
  refreshAt: number;
  usableUntil: number;
}

/**
 * The credential of one cluster. A valid one is used at once, and the next one is requested in the background when it is due;
 * callers wait only when there is none.
 */
export class Credential {
  #current: Current | undefined;
  #pushed: Kubeconfig | undefined;
  #renewing: Promise<void> | undefined;
  #retryAt = 0;

  constructor(
    private readonly client: DiscoveryClient,
    private readonly name: string,
    /** The newest kubeconfig that a stream delivered. */
    private readonly pushed: () => Kubeconfig | undefined = () => undefined,
    /** The incarnation to which the credential is limited, as of now. */
    private readonly incarnation: () => string = () => "",
  ) {}

  /** Return the credential to use now. Throws why there is none. */
  async access(): Promise<Access> {
    const pushed = this.pushed();
    if (pushed && pushed !== this.#pushed) this.#offer((this.#pushed = pushed), 0.25); // the stream brings the next one too
    const now = Date.now();
    if (!this.#current || now >= this.#current.usableUntil) await this.#renew();
    else if (now >= this.#current.refreshAt && now >= this.#retryAt) this.#renew().catch(() => {});
    return this.#current!.access;
  }

  #renew(): Promise<void> {
    this.#renewing ??= this.client
      .issueKubeconfig(this.name, { incarnation: this.incarnation() })
      .then((kubeconfig) => this.#offer(kubeconfig, 0))
      .catch((error: unknown) => {
        this.#retryAt = Date.now() + RETRY_MS;
        throw error;
      })
      .finally(() => (this.#renewing = undefined));
    return this.#renewing;
  }

  #offer(kubeconfig: Kubeconfig, wait: number): void {
    const expiresAt = time(kubeconfig.expiresAt) ?? Infinity;
    const issuedAt = time(kubeconfig.issuedAt) ?? -Infinity;
    const refreshAt = time(kubeconfig.refreshAfter) ?? Infinity;
    this.#current = {
      access: readAccess(kubeconfig),
      refreshAt: Number.isFinite(expiresAt) ? refreshAt + wait * (expiresAt - refreshAt) : refreshAt,
      usableUntil: expiresAt - Math.min(MARGIN_MS, 0.1 * (expiresAt - issuedAt)),
    };
  }
}
