import { timestampMs } from "@bufbuild/protobuf/wkt";

export function duration(ms: number): { seconds: bigint; nanos: number } {
  const seconds = Math.trunc(ms / 1000);
  return { seconds: BigInt(seconds), nanos: Math.round((ms - seconds * 1000) * 1e6) };
}

/** Milliseconds since the epoch, or undefined. */
export function time(at: Parameters<typeof timestampMs>[0] | undefined): number | undefined {
  return at && timestampMs(at);
}
