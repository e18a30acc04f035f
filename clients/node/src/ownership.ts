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
  #keeping: Promise<void> | undefined;
  #isClosed = false;
  /** Ends the pause of the keeper. */
  #wake: () => void = () => {};

  constructor(
    private readonly renew: (timeoutMs: number) => Promise<RenewOwnershipResponse>,
    /** Called when the ownership may have been lost or renewed. */
    private readonly onChange: () => void = () => {},
  ) {}

  /** Whether the ownership is held. After it has expired, false until `acknowledgeLoss`, even if it was renewed. */
  get isHeld(): boolean {
    this.#isLost ||= now() >= this.#until;
    return !this.#isLost;
  }

  /** Record that all clusters were disengaged after a loss, so that the ownership can be held again. */
  acknowledgeLoss(): void {
    this.#isLost = false;
  }

  /** Begin to renew, when the first `sharded` batch arrives. Resolves after the first attempt. */
  async begin(): Promise<void> {
    if (this.#keeping) return;
    this.#until = 0;
    const first = this.#renew(now()).then(() => this.acknowledgeLoss()); // nothing was held before the first response
    this.#keeping = first.then(() => this.#keep());
    await first;
  }

  /** End the renewals. */
  close(): void {
    this.#isClosed = true;
    this.#wake();
  }

  async #keep(): Promise<void> {
    for (let wasHeld = this.isHeld; this.#until !== Infinity; wasHeld = this.isHeld) {
      await this.#pause(wasHeld);
      if (this.#isClosed) break;
      const asked = now(); // before the call: if the machine is suspended after it, the response must not cover that time
      this.onChange();
      await this.#renew(asked);
      this.onChange();
    }
    this.#keeping = undefined;
  }

  async #renew(asked: number): Promise<void> {
    const left = this.#until - asked;
    try {
      const { sharded, validFor } = await this.renew(left > 0 ? Math.min(left, INTERVAL_MS) : INTERVAL_MS);
      this.#isLost = !this.isHeld; // ownership that has expired is lost, even if it is renewed
      // The duration counts from the request, since the response may have been delayed.
      if (!sharded) this.#until = Infinity;
      else if (validFor && isValid(validFor)) {
        this.#until = Math.max(this.#until, asked + Number(validFor.seconds) * 1000 + validFor.nanos / 1e6);
      }
    } catch {
      // The last response applies until it expires.
    }
  }

  /**
   * Wait for the time of the next renewal: shorter towards the deadline, since the daemon may renew its own Lease late; not at all
   * after a loss.
   */
  async #pause(wasHeld: boolean): Promise<void> {
    const left = this.#until - now();
    const afterMs = left > 0 ? Math.min(INTERVAL_MS, Math.max(left / 2, Math.min(left, SHORTEST_MS))) : wasHeld ? 0 : INTERVAL_MS / 3;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      timer = setTimeout(resolve, this.#isClosed ? 0 : afterMs);
      this.#wake = resolve;
    });
    clearTimeout(timer);
  }
}
