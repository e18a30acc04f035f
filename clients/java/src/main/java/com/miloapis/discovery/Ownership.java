package com.miloapis.discovery;

import com.miloapis.discovery.v1.RenewOwnershipResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/**
 * Until when a sharded daemon's clusters are its own. A daemon that is killed cannot say that it lost them, and another one engages
 * them: so ask every few seconds, and stop when the time of the last response has passed.
 */
final class Ownership implements Runnable, AutoCloseable {
  private static final long INTERVAL_MS = 3000;
  private static final long SHORTEST_MS = 200;
  private static final long NEVER = Long.MAX_VALUE;
  private static final long LONGEST_DURATION_S = 315_576_000_000L; // of protobuf

  /** Calls RenewOwnership. */
  interface Renewal {
    RenewOwnershipResponse renew(Duration timeout);
  }

  private final Renewal renewal;
  private final Runnable onChange;
  private volatile long until = NEVER;
  private volatile Thread keeper;
  private volatile boolean wasHeld;
  private volatile boolean isLost;

  Ownership(Renewal renewal, Runnable onChange) {
    this.renewal = renewal;
    this.onChange = onChange;
  }

  /** False from when it has ended until {@link #acknowledgeLoss}, even if it was renewed meanwhile. */
  boolean isHeld() {
    return !isLost && (until == NEVER || now() < until);
  }

  /** To be called after the clusters were disengaged: others may have engaged them. */
  void acknowledgeLoss() {
    isLost = false;
  }

  /** Begin to renew, with the first batch that is sharded. Returns after the first response. */
  void begin() {
    if (keeper != null) {
      return;
    }
    until = 0;
    renew(now());
    wasHeld = isHeld(); // here: ownership that ends before the thread runs has to disengage the clusters too
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
      while (until != NEVER) {
        Thread.sleep(pause());
        long asked = now(); // before the check: a suspension after it must not be covered by the response
        notifyIfChanged(); // what has ended meanwhile is lost, even if it can be renewed
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
      isLost = !isHeld;
      onChange.run();
    }
  }

  private void renew(long asked) {
    long left = until - asked;
    try {
      var response = renewal.renew(Duration.ofMillis(left > 0 ? Math.min(left, INTERVAL_MS) : INTERVAL_MS));
      var validFor = response.getValidFor();
      if (!response.getSharded()) {
        until = NEVER;
      } else if (response.hasValidFor() && isValid(validFor)) {
        // It counts from the request, since the response may have been delayed.
        until = Math.max(until, asked + validFor.getSeconds() * 1000 + validFor.getNanos() / 1_000_000);
      }
    } catch (DiscoveryException error) {
      // The last response stands until its time has passed.
    }
  }

  private static boolean isValid(com.google.protobuf.Duration duration) {
    boolean hasSeconds = duration.getSeconds() >= 0 && duration.getSeconds() <= LONGEST_DURATION_S;
    return hasSeconds && duration.getNanos() >= 0 && duration.getNanos() < 1_000_000_000;
  }

  /** Shorter towards the deadline, since the daemon may renew its own Lease late. None if an ownership that was held has ended. */
  private long pause() {
    long left = until - now();
    if (left > 0) {
      return Math.min(INTERVAL_MS, Math.max(left / 2, Math.min(left, SHORTEST_MS)));
    }
    return wasHeld ? 0 : INTERVAL_MS / 3;
  }

  /** Milliseconds of a clock that, unlike System.nanoTime, also advances while the machine is suspended, where there is one. */
  static long now() {
    try {
      String uptime = Files.readString(Path.of("/proc/uptime"));
      return Math.round(Double.parseDouble(uptime.substring(0, uptime.indexOf(' '))) * 1000);
    } catch (IOException notLinux) {
      return System.nanoTime() / 1_000_000;
    }
  }
}
