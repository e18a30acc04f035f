package com.miloapis.discovery;

import com.google.protobuf.Timestamp;
import com.miloapis.discovery.v1.Kubeconfig;
import java.time.Duration;
import java.time.Instant;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.function.Supplier;

/**
 * The credential of one cluster. A valid one is used at once, and the next one is requested in the background when it is due; callers
 * wait only when there is none. It may be used from any thread.
 */
public final class Credential {
  private static final Duration MARGIN = Duration.ofSeconds(5); // the request that uses it takes time to arrive
  private static final Duration RETRY = Duration.ofSeconds(1);

  private record Current(Access access, Instant refreshAt, Instant usableUntil) {}

  private final Supplier<Kubeconfig> issue;
  private final Supplier<Kubeconfig> pushed;
  private Current current;
  private Kubeconfig lastPushed;
  private CompletableFuture<Void> renewal = CompletableFuture.completedFuture(null);
  private Instant retryAt = Instant.MIN;

  /**
   * @param issue requests a kubeconfig
   * @param pushed returns the newest one that a stream delivered, or null
   */
  Credential(Supplier<Kubeconfig> issue, Supplier<Kubeconfig> pushed) {
    this.issue = issue;
    this.pushed = pushed;
  }

  /** Return the credential to use now. Throws a DiscoveryException that says why there is none. */
  public Access access() {
    CompletableFuture<Void> awaited;
    synchronized (this) {
      var newest = pushed.get();
      if (newest != null && newest != lastPushed) {
        lastPushed = newest;
        offer(newest, 0.25); // the stream brings the next one too: wait for it a while
      }
      var now = Instant.now();
      boolean isValid = current != null && now.isBefore(current.usableUntil);
      if (isValid && (now.isBefore(current.refreshAt) || now.isBefore(retryAt))) {
        return current.access;
      }
      if (renewal.isDone()) {
        renewal = CompletableFuture.runAsync(this::renew);
      }
      if (isValid) {
        return current.access;
      }
      awaited = renewal;
    }
    try {
      awaited.join();
    } catch (CompletionException failed) {
      throw failed.getCause() instanceof DiscoveryException error ? error : failed;
    }
    synchronized (this) {
      return current.access;
    }
  }

  private void renew() {
    try {
      var issued = issue.get();
      synchronized (this) {
        offer(issued, 0);
      }
    } catch (DiscoveryException error) {
      synchronized (this) {
        retryAt = Instant.now().plus(RETRY);
      }
      throw error;
    }
  }

  private void offer(Kubeconfig kubeconfig, double wait) {
    var access = Access.of(kubeconfig);
    if (!kubeconfig.hasExpiresAt()) {
      current = new Current(access, Instant.MAX, Instant.MAX);
      return;
    }
    var expiresAt = instant(kubeconfig.getExpiresAt());
    var refreshAt = kubeconfig.hasRefreshAfter() ? instant(kubeconfig.getRefreshAfter()) : expiresAt;
    var waited = Duration.between(refreshAt, expiresAt).toMillis() * wait;
    var life = kubeconfig.hasIssuedAt() ? Duration.between(instant(kubeconfig.getIssuedAt()), expiresAt) : MARGIN;
    var margin = Math.min(MARGIN.toMillis(), life.toMillis() / 10);
    current = new Current(access, refreshAt.plusMillis((long) waited), expiresAt.minusMillis(margin));
  }

  private static Instant instant(Timestamp at) {
    return Instant.ofEpochSecond(at.getSeconds(), at.getNanos());
  }
}
