// Until when the clusters of a sharded daemon are its own. A daemon that is killed can't say that it lost them, and another
// one engages them: so ask every few seconds, and stop when the time of the last answer has passed.
import { EventEmitter } from "node:events";
import { expiry, now } from "./time.mjs";

const INTERVAL_MS = 3000;
const SHORTEST_MS = 200;

export class Ownership extends EventEmitter {
  #until = Infinity;
  #renewing = false;
  #wasHeld = true;

  // `ask(timeoutMs)` calls RenewOwnership.
  constructor(ask) {
    super();
    this.ask = ask;
  }

  get held() {
    return now() < this.#until;
  }

  // To be called with each batch that is `sharded`. It emits "lost", and "held" once the daemon owns its clusters again.
  async begin() {
    if (this.#renewing) return;
    this.#renewing = true;
    this.#until = 0;
    await this.#renew();
    this.#notify();
    setTimeout(() => this.#keep(), this.#pause());
  }

  async #keep() {
    this.#notify(); // what has ended meanwhile is lost, even if it can be renewed
    await this.#renew();
    this.#notify();
    if (this.#until === Infinity) this.#renewing = false;
    else setTimeout(() => this.#keep(), this.#pause());
  }

  async #renew() {
    const asked = now();
    const left = this.#until - asked;
    try {
      const { sharded, valid_for } = await this.ask(left > 0 ? Math.min(left, INTERVAL_MS) : INTERVAL_MS);
      if (!sharded) this.#until = Infinity;
      else this.#until = Math.max(this.#until, expiry(valid_for, asked));
    } catch {
      // The last answer stands until its time has passed.
    }
  }

  #notify() {
    const { held } = this;
    if (held !== this.#wasHeld) this.emit((this.#wasHeld = held) ? "held" : "lost");
  }

  #pause() {
    const left = this.#until - now();
    return left > 0 ? Math.min(INTERVAL_MS, Math.max(left / 2, Math.min(left, SHORTEST_MS))) : INTERVAL_MS / 3;
  }
}
