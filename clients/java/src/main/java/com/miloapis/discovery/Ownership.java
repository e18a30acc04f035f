package com.miloapis.discovery;

import com.miloapis.discovery.v1.RenewOwnershipResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/**
 * The deadline of a sharded daemon's ownership of its clusters. A daemon that is killed cannot report that it lost
 * them, and another daemon engages them. So the ownership is renewed every few seconds, and is lost when {@code
 * valid_for} of the last response has elapsed.
 */
final class Ownership implements Runnable, AutoCloseable {
  private static final long INTERVAL_MS = 3000;
  private static final long SHORTEST_MS = 200;
  private static final long NEVER = Long.MAX_VALUE;
  private static final long LONGEST_DURATION_S = 315_576_000_000L; // maximum of a protobuf Duration

  /** Calls RenewOwnership. */
  interface Renewal {
    RenewOwnershipResponse renew(Duration timeout);
  }

  private final Renewal renewal;
  private final Runnable onChange;
  private volatile Thread keeper;
  private boolean wasHeld; // when the keeper last compared
  private long until = NEVER;
  private boolean isLost;

  Ownership(Renewal renewal, Runnable onChange) {
    this.renewal = renewal;
    this.onChange = onChange;
  }

  /** Whether the ownership is held. After it has expired, false until {@link #acknowledgeLoss}, even if it was renewed. */
  synchronized boolean isHeld() {
    isLost |= until != NEVER && now() >= until;
    return !isLost;
  }

  /** Record that all clusters were disengaged after a loss, so that the ownership can be held again. */
  synchronized void acknowledgeLoss() {
    isLost = false;
  }

  /** Begin to renew, when the first sharded batch arrives. Returns after the first attempt. */
  void begin() {
    if (keeper != null) {
      return;
    }
    synchronized (this) {
      until = 0;
    }
    renew(now());
    acknowledgeLoss(); // nothing was held before the first response
    wasHeld = isHeld(); // before the thread starts, so that it notices an expiry in between
    keeper = new Thread(this, "milo-discovery ownership");
    keeper.setDaemon(true);
    keeper.start();
  }

  @Override
  public void close() {
    if (keeper != null) {
      keeper.interrupt();
    }
  }

  @Override
  public void run() {
    try {
      while (deadline() != NEVER) {
        Thread.sleep(pause());
        long asked = now(); // before the check: if the machine is suspended after it, the response must not cover that time
        notifyIfChanged();
        renew(asked);
        notifyIfChanged();
      }
      keeper = null;
    } catch (InterruptedException closed) {
      Thread.currentThread().interrupt();
    }
  }

  private void notifyIfChanged() {
    boolean isHeld = isHeld();
    if (isHeld != wasHeld) {
      wasHeld = isHeld;
      onChange.run();
    }
  }

  private void renew(long asked) {
    long left = deadline() - asked;
    try {
      apply(renewal.renew(Duration.ofMillis(left > 0 ? Math.min(left, INTERVAL_MS) : INTERVAL_MS)), asked);
    } catch (RuntimeException error) {
      // The last response applies until it expires.
    }
  }

  private synchronized void apply(RenewOwnershipResponse response, long asked) {
    isHeld(); // ownership that has expired is lost, even if it is renewed
    var validFor = response.getValidFor();
    if (!response.getSharded()) {
      until = NEVER;
    } else if (response.hasValidFor() && isValid(validFor)) {
      // The duration counts from the request, since the response may have been delayed.
      until = Math.max(until, asked + validFor.getSeconds() * 1000 + validFor.getNanos() / 1_000_000);
    }
  }

  private synchronized long deadline() {
    return until;
  }

  private static boolean isValid(com.google.protobuf.Duration duration) {
    boolean hasSeconds = duration.getSeconds() >= 0 && duration.getSeconds() <= LONGEST_DURATION_S;
    return hasSeconds && duration.getNanos() >= 0 && duration.getNanos() < 1_000_000_000;
  }

  /** The delay before the next renewal: shorter towards the deadline, since the daemon may renew its own Lease late; 0 after a loss. */
  private long pause() {
    long left = deadline() - now();
    if (left > 0) {
      return Math.min(INTERVAL_MS, Math.max(left / 2, Math.min(left, SHORTEST_MS)));
    }
    return wasHeld ? 0 : INTERVAL_MS / 3;
  }

  /** Milliseconds of the boot-time clock, which unlike System.nanoTime advances while the machine is suspended; on Linux only. */
  static long now() {
    try {
      String uptime = Files.readString(Path.of("/proc/uptime"));
      return Math.round(Double.parseDouble(uptime.substring(0, uptime.indexOf(' '))) * 1000);
    } catch (IOException notLinux) {
      return System.nanoTime() / 1_000_000;
    }
  }
}
