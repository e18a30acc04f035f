package com.miloapis.discovery;

import com.google.protobuf.Timestamp;
import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.Kubeconfig;
import io.grpc.Status;
import java.time.Duration;
import java.time.Instant;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.Supplier;

/**
 * The credential of one engagement: its access throws an exception once the engagement has ended. A valid credential is
 * returned at once, and a new one is requested in the background when it is due for renewal. Callers wait only if there
 * is no valid credential, until the response arrives or the stream pushes a kubeconfig. After a failed request, no
 * other is sent until a backoff has elapsed. Until then, callers without a valid credential get the error of the failed
 * request. After a successful one, none is sent for some seconds, even if this machine's clock is ahead and the new
 * credential seems to be due for renewal, or expired. A credential may be used from any thread.
 */
public final class Credential {
  /** The most by which its use ends before its expiry, and the shortest interval between requests. */
  private static final Duration MARGIN = Duration.ofSeconds(5);

  private static final Duration FIRST_BACKOFF = Duration.ofSeconds(1);
  private static final Duration LONGEST_BACKOFF = Duration.ofSeconds(30);

  private static final long FIRST_TIMESTAMP_S = -62_135_596_800L; // 0001-01-01
  private static final long LAST_TIMESTAMP_S = 253_402_300_799L; // 9999-12-31

  /** Requests a kubeconfig. */
  interface Issuer {
    CompletableFuture<Kubeconfig> issue(String incarnation, boolean isRetry);
  }

  private record Current(Access access, Instant issuedAt, Instant refreshAt, Instant usableUntil) {}

  private final String name;
  private final Supplier<Session.Known> engaged;
  private final Issuer issuer;
  private final Supplier<CompletableFuture<Void>> nextEvent;
  private Current current;
  private String endpoint = "";
  private Kubeconfig lastPushed;
  private CompletableFuture<Void> renewal;
  private Throwable failure; // of the last request; null if it succeeded
  private long notBefore = System.nanoTime(); // no request before this time, of System.nanoTime, since clocks can be set back
  private Duration backoff = FIRST_BACKOFF;

  /**
   * @param engaged returns the current state of the engaged cluster; null once the engagement has ended
   * @param nextEvent returns a future that the next event of the cluster completes
   */
  Credential(
      String name, Supplier<Session.Known> engaged, Issuer issuer, Supplier<CompletableFuture<Void>> nextEvent) {
    this.name = name;
    this.engaged = engaged;
    this.issuer = issuer;
    this.nextEvent = nextEvent;
  }

  /** Return the credential to use now. Throws a DiscoveryException with the reason if there is none. */
  public Access access() {
    while (true) {
      Session.Known known;
      CompletableFuture<Void> awaited;
      synchronized (this) {
        known = require();
        if (!known.cluster().getEndpoint().equals(endpoint)) {
          endpoint = known.cluster().getEndpoint();
          current = null; // another project may have the former endpoint
          renewal = null;
          failure = null;
          notBefore = System.nanoTime();
        }
        if (known.kubeconfig() != null && known.kubeconfig() != lastPushed) {
          lastPushed = known.kubeconfig();
          offer(lastPushed, 0.25); // the stream is expected to push the next one too: wait for it a while
        }
        var now = Instant.now();
        boolean isValid = current != null && now.isBefore(current.usableUntil);
        if (isValid && now.isBefore(current.refreshAt)) {
          return current.access;
        }
        awaited = renewal == null && System.nanoTime() - notBefore >= 0 ? renew(known.cluster()) : renewal;
        if (isValid || (awaited == null && failure == null)) { // the latter if it was issued just now: the clocks do not agree
          return current.access;
        }
        if (awaited == null) {
          throw failure instanceof DiscoveryException error ? error : new CompletionException(failure);
        }
      }
      if (isRenewedBeforeNextEvent(awaited, known)) {
        require(); // the cluster may have been disengaged during the wait
        synchronized (this) {
          if (current != null) { // otherwise the endpoint changed during the request
            return current.access;
          }
        }
      }
    }
  }

  /** Wait for a renewal, or an event of the cluster, such as a kubeconfig or DISENGAGED. Returns false after an event. */
  private boolean isRenewedBeforeNextEvent(CompletableFuture<Void> awaited, Session.Known asOf) {
    var event = nextEvent.get();
    if (engaged.get() != asOf) {
      return false; // the event arrived before this call
    }
    try {
      CompletableFuture.anyOf(awaited, event).join();
    } catch (CompletionException failed) {
      throw failed.getCause() instanceof DiscoveryException error ? error : failed;
    }
    return awaited.isDone() && !event.isDone();
  }

  private Session.Known require() {
    var known = engaged.get();
    if (known == null) {
      throw new DiscoveryException(
          Status.Code.NOT_FOUND, "the engagement of cluster " + name + " has ended: its credential must not be used");
    }
    return known;
  }

  /** Send a request. Returns a future that is completed after its result was stored, which may be before the return. */
  private CompletableFuture<Void> renew(Cluster asked) {
    var ended = new CompletableFuture<Void>();
    renewal = ended;
    issuer
        .issue(asked.getIncarnation(), failure != null)
        .whenComplete(
            (issued, error) -> {
              Throwable problem = null;
              synchronized (this) {
                renewal = renewal == ended ? null : renewal; // another one if the endpoint changed
                if (asked.getEndpoint().equals(endpoint)) { // otherwise the result is that of a former endpoint
                  problem = error == null ? stored(issued) : error;
                }
                if (problem != null) {
                  failed(problem);
                }
              }
              if (problem == null) {
                ended.complete(null);
              } else {
                ended.completeExceptionally(problem);
              }
            });
    return ended;
  }

  /** Use the kubeconfig of a response, and send no request for some seconds. Returns why it was refused; null if it was not. */
  private Throwable stored(Kubeconfig issued) {
    try {
      notBefore = System.nanoTime() + offer(issued, 0).toNanos();
      return null;
    } catch (DiscoveryException refused) {
      return refused;
    }
  }

  private void failed(Throwable error) {
    failure = error;
    var delay = Duration.ofMillis(Math.round(backoff.toMillis() * ThreadLocalRandom.current().nextDouble(0.5, 1)));
    var requested = error instanceof DiscoveryException refusal ? refusal.retryAfter() : Duration.ZERO;
    notBefore = System.nanoTime() + delay.plus(requested).toNanos();
    var doubled = backoff.multipliedBy(2);
    backoff = doubled.compareTo(LONGEST_BACKOFF) > 0 ? LONGEST_BACKOFF : doubled;
  }

  /** Use a kubeconfig, unless the current one is newer. Returns by how much its use ends before its expiry. */
  private Duration offer(Kubeconfig kubeconfig, double wait) {
    var access = Access.of(kubeconfig);
    failure = null;
    notBefore = System.nanoTime();
    backoff = FIRST_BACKOFF;
    boolean hasIssuedAt = isValid(kubeconfig.hasIssuedAt(), kubeconfig.getIssuedAt());
    var issuedAt = hasIssuedAt ? instant(kubeconfig.getIssuedAt()) : Instant.MIN;
    boolean expires = isValid(kubeconfig.hasExpiresAt(), kubeconfig.getExpiresAt());
    var expiresAt = expires ? instant(kubeconfig.getExpiresAt()) : Instant.MAX;
    var life = hasIssuedAt && expires ? Duration.between(issuedAt, expiresAt).dividedBy(10) : MARGIN;
    var margin = life.isNegative() ? Duration.ZERO : life.compareTo(MARGIN) > 0 ? MARGIN : life;
    // If the current one was issued in the future, the clocks do not agree, or one was set back since.
    if (current != null && issuedAt.isBefore(current.issuedAt) && !current.issuedAt.isAfter(Instant.now())) {
      return margin; // a response can arrive after the stream has pushed a newer kubeconfig, which may be for another server
    }
    if (!expires) {
      current = new Current(access, issuedAt, Instant.MAX, Instant.MAX);
      return margin;
    }
    boolean hasRefreshAfter = isValid(kubeconfig.hasRefreshAfter(), kubeconfig.getRefreshAfter());
    var refreshAt = hasRefreshAfter ? instant(kubeconfig.getRefreshAfter()) : expiresAt;
    var waited = Duration.between(refreshAt, expiresAt).toMillis() * wait;
    current = new Current(access, issuedAt, refreshAt.plusMillis((long) waited), expiresAt.minus(margin));
    return margin;
  }

  /** Whether a timestamp is set, and in the range of protobuf timestamps, outside of which Instant throws exceptions. */
  private static boolean isValid(boolean isSet, Timestamp at) {
    boolean inRange = at.getSeconds() >= FIRST_TIMESTAMP_S && at.getSeconds() <= LAST_TIMESTAMP_S;
    return isSet && inRange && at.getNanos() >= 0 && at.getNanos() < 1_000_000_000;
  }

  private static Instant instant(Timestamp at) {
    return Instant.ofEpochSecond(at.getSeconds(), at.getNanos());
  }
}
