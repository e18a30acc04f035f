// Work that one replica does at a time, such as a cleanup: ask for it every few seconds, and do it while it is granted.
import { setTimeout as sleep } from "node:timers/promises";
import { expiry, now } from "./time.mjs";

const INTERVAL_MS = 3000;

export class Singleton {
  #until = 0;
  #granted = false;
  #task = null; // the work that was begun last, with what ends it

  // `claim(name, state, timeoutMs)` calls ClaimSingletons, and `work(signal)` is called each time that the work is granted.
  // The signal is aborted when the grant ends, also while the daemon does not answer. The work then has to end: another
  // replica begins when it has, or when the daemon no longer waits for that.
  constructor(name, claim, work) {
    this.name = name;
    this.claim = claim;
    this.work = work;
  }

  // Claim and work until the signal `stop` is aborted.
  async run(stop) {
    while (!stop?.aborted) {
      await this.#claim();
      this.#settle();
      await sleep(this.#pause(), undefined, { signal: stop }).catch(() => {});
      this.#settle(); // a grant that has expired meanwhile is over, even if it can be repeated
    }
    this.#task?.end.abort();
    await this.#task?.done;
  }

  async #claim() {
    const asked = now();
    try {
      const { granted, valid_for } = await this.claim(this.name, this.#state(), this.#pause());
      this.#granted = granted.includes(this.name);
      this.#until = expiry(valid_for, asked);
    } catch {
      // The last grant holds until it expires.
    }
  }

  #state() {
    const ended = this.#task?.ended ?? true;
    if (this.#isWorking()) return "STATE_WORKING";
    return ended ? "STATE_WAITING" : "STATE_ENDING";
  }

  #isWorking() {
    return this.#task !== null && !this.#task.end.signal.aborted;
  }

  #settle() {
    this.#granted &&= now() < this.#until;
    if (!this.#granted) {
      this.#task?.end.abort();
    } else if (!this.#isWorking() && (this.#task?.ended ?? true)) {
      const task = { end: new AbortController(), ended: false };
      this.#task = task;
      task.done = Promise.resolve()
        .then(() => this.work(task.end.signal))
        .catch((error) => console.error(`${this.name} failed: ${error.message}`))
        .finally(() => (task.ended = true));
    }
  }

  #pause() {
    const left = this.#granted ? this.#until - now() : 0;
    return left > 0 ? Math.min(INTERVAL_MS, left) : INTERVAL_MS;
  }
}
