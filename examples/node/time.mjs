// Until when something is valid that the daemon confirms for a while.
import { uptime } from "node:os";

const LONGEST_S = 315_576_000_000; // the longest duration of protobuf

// Unlike the clock of timers, this one also advances while the machine is suspended.
export const now = () => uptime() * 1000;

// When something expires that is valid for a duration from the request for it. A missing or invalid one counts as zero.
export function expiry(validFor, asked) {
  const [seconds, nanos] = [Number(validFor?.seconds), Number(validFor?.nanos)];
  const isValid = Math.abs(seconds) <= LONGEST_S && Math.abs(nanos) < 1e9 && seconds * nanos >= 0;
  return isValid ? asked + seconds * 1000 + nanos / 1e6 : asked;
}
