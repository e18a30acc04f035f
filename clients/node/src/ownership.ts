import { uptime } from "node:os";
import type { RenewOwnershipResponse } from "./gen/milo/discovery/v1/discovery_pb.js";

const INTERVAL_MS = 3000;
const SHORTEST_MS = 200;
const LONGEST_DURATION_S = 315_576_000_000n; // maximum of a protobuf Duration

/** Milliseconds of a clock that, unlike the clock of timers, also advances while the machine is suspended. */
export const now = (): number => uptime() * 1000;

function isValid({ seconds, nanos }: { seconds: bigint; nanos: number }): boolean {
  return seconds >= 0n && seconds <= LONGEST_DURATION_S && nanos >= 0 && nanos < 1e9;
}

/**
 * The deadline of a sharded daemon's ownership of its clusters. A daemon that is killed cannot report that it lost
 * them, and another daemon engages them. So the ownership is renewed every few seconds, and is lost when `validFor` of
 * the last response has elapsed.
 */
export class Ownership {
  #until = Infinity;
  #isLost = false;
  #renewing: Promise<void> | undefined;
  #closed = false;

  constructor(
    private readonly renew: (timeoutMs: number) => Promise<RenewOwnershipResponse>,
    /** Called when the ownership is lost, and when it is held again. */
    private readonly onChange: () => void = () => {},
  ) {}

  /** Whether the ownership is held. After it has expired, false until `acknowledgeLoss`, even if it was renewed. */
  get isHeld(): boolean {
    return !this.#isLost && now() < this.#until;
  }

  /** Record that all clusters were disengaged after a loss, so that the ownership can be held again. */
  acknowledgeLoss(): void {
    this.#isLost = false;
  }

  /** Begin to renew, when the first `sharded` batch arrives. Resolves after the first attempt. */
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
      this.#isLost = !wasHeld;
      this.onChange();
    };
    while (this.#until !== Infinity && !this.#closed) {
      await new Promise((resolve) => setTimeout(resolve, this.#pause(wasHeld)));
      const asked = now(); // before the check: if the machine is suspended after it, the response must not cover that time
      notify(); // ownership that has expired is lost, even if it can be renewed
      await this.#renew(asked);
      notify();
    }
    this.#renewing = undefined;
  }

  async #renew(asked: number): Promise<void> {
    const left = this.#until - asked;
    try {
      const { sharded, validFor } = await this.renew(left > 0 ? Math.min(left, INTERVAL_MS) : INTERVAL_MS);
      // The duration counts from the request, since the response may have been delayed.
      if (!sharded) this.#until = Infinity;
      else if (validFor && isValid(validFor)) {
        this.#until = Math.max(this.#until, asked + Number(validFor.seconds) * 1000 + validFor.nanos / 1e6);
      }
    } catch {
      // The last response applies until it expires.
    }
  }

  // The delay before the next renewal: shorter towards the deadline, since the daemon may renew its own Lease late; 0 after a loss.
  #pause(wasHeld: boolean): number {
    const left = this.#until - now();
    if (left > 0) return Math.min(INTERVAL_MS, Math.max(left / 2, Math.min(left, SHORTEST_MS)));
    return wasHeld ? 0 : INTERVAL_MS / 3;
  }
}
