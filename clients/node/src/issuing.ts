const MAX_CONCURRENT = 16;
const PAUSE_AFTER_FAILURE_MS = 1000;

/**
 * Limits concurrent requests for credentials, over all clusters. A failed request keeps its slot for another second.
 * Requests of clusters whose last request failed come after all others, so that clusters of an unavailable issuer delay
 * the others less.
 */
export class IssueLimit {
  #free = MAX_CONCURRENT;
  readonly #first: (() => void)[] = [];
  readonly #retries: (() => void)[] = [];

  async run<T>(request: () => Promise<T>, isRetry: boolean): Promise<T> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => (isRetry ? this.#retries : this.#first).push(resolve));
    let pauseMs = PAUSE_AFTER_FAILURE_MS;
    try {
      const result = await request();
      pauseMs = 0;
      return result;
    } finally {
      if (pauseMs > 0) setTimeout(() => this.#release(), pauseMs).unref();
      else this.#release();
    }
  }

  #release(): void {
    const next = this.#first.shift() ?? this.#retries.shift();
    if (next) next();
    else this.#free += 1;
  }
}
