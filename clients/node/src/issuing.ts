const AT_ONCE = 16;
const REST_MS = 1000;

/**
 * Limits the requests for credentials of all clusters: a few in flight, each of which counts for another second if it fails. Clusters
 * whose last request failed wait for all others, so that an issuer that is down delays nothing else.
 */
export class IssueLimit {
  #free = AT_ONCE;
  readonly #first: (() => void)[] = [];
  readonly #retries: (() => void)[] = [];

  async run<T>(request: () => Promise<T>, isRetry: boolean): Promise<T> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => (isRetry ? this.#retries : this.#first).push(resolve));
    let restMs = REST_MS;
    try {
      const result = await request();
      restMs = 0;
      return result;
    } finally {
      if (restMs > 0) setTimeout(() => this.#release(), restMs).unref();
      else this.#release();
    }
  }

  #release(): void {
    const next = this.#first.shift() ?? this.#retries.shift();
    if (next) next();
    else this.#free += 1;
  }
}
