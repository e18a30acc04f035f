import { uptime } from "node:os";
import type { RenewOwnershipResponse } from "./gen/milo/discovery/v1/discovery_pb.js";

const INTERVAL_MS = 3000;
const SHORTEST_MS = 200;
const LONGEST_DURATION_S = 315_576_000_000n; // of protobuf

/** Milliseconds of a clock that, unlike that of timers, also advances while the machine is suspended. */
export const now = (): number => uptime() * 1000;

function isValid({ seconds, nanos }: { seconds: bigint; nanos: number }): boolean {
  return seconds >= 0n && seconds <= LONGEST_DURATION_S && nanos >= 0 && nanos < 1e9;
}

/**
 * Until when a sharded daemon's clusters are its own. A daemon that is killed cannot say that it lost them, and another one
 * engages them: so ask every few seconds, and stop when the time of the last response has passed.
 */
export class Ownership {
  #until = Infinity;
  #renewing: Promise<void> | undefined;
  #closed = false;

  constructor(
    private readonly renew: (timeoutMs: number) => Promise<RenewOwnershipResponse>,
    /** Called when the ownership is lost, or held again. */
    private readonly onChange: () => void = () => {},
  ) {}

  get isHeld(): boolean {
    return now() < this.#until;
  }

  /** Begin to renew, with the first batch that is `sharded`. Settles after the first response. */
  async begin(): Promise<void> {
    if (this.#renewing) return;
    this.#until = 0;
    const first = this.#renew(now());
    this.#renewing = first.then(() => this.#keep());
    await first;
  }

  close(): void {
    this.#closed = true;
  }

  async #keep(): Promise<void> {
    let wasHeld = this.isHeld;
    const notify = () => {
      if (wasHeld === this.isHeld) return;
      wasHeld = !wasHeld;
      this.onChange();
    };
    while (this.#until !== Infinity && !this.#closed) {
      await new Promise((resolve) => setTimeout(resolve, this.#pause(wasHeld)));
      const asked = now(); // before the check: a suspension after it must not be covered by the response
      notify(); // what has ended meanwhile is lost, even if it can be renewed
      await this.#renew(asked);
      notify();
    }
    this.#renewing = undefined;
  }

  async #renew(asked: number): Promise<void> {
    const left = this.#until - asked;
    try {
      const { sharded, validFor } = await this.renew(left > 0 ? Math.min(left, INTERVAL_MS) : INTERVAL_MS);
      // A duration counts from the request, since the response may have been delayed.
      if (!sharded) this.#until = Infinity;
      else if (validFor && isValid(validFor)) {
        this.#until = Math.max(this.#until, asked + Number(validFor.seconds) * 1000 + validFor.nanos / 1e6);
      }
    } catch {
      // The last response stands until its time has passed.
    }
  }

  // Shorter towards the deadline, since the daemon may renew its own Lease late. None if an ownership that was held has ended.
  #pause(wasHeld: boolean): number {
    const left = this.#until - now();
    if (left > 0) return Math.min(INTERVAL_MS, Math.max(left / 2, Math.min(left, SHORTEST_MS)));
    return wasHeld ? 0 : INTERVAL_MS / 3;
  }
}
