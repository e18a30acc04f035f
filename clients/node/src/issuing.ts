const AT_ONCE = 16;
const REST_MS = 1000;

/**
 * Limits concurrent requests for credentials, over all clusters. A failed request keeps its slot for another second.
 * Requests of clusters whose last request failed come after all others, so that an unavailable issuer delays no other
 * cluster.
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
