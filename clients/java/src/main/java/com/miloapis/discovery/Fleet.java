package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import io.grpc.Status;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.BiConsumer;

/**
 * Runs one handler per engaged cluster, each in its own thread. A draining cluster is released when its handler has returned.
 *
 * <p>A handler has to return when {@link EngagedCluster#awaitEnd} returns. A handler that throws is called again after a backoff; one
 * that returns is not. For a later engagement of the same name, it is called after the previous call has ended.
 */
public final class Fleet implements AutoCloseable {
  private static final Duration FIRST_BACKOFF = Duration.ofSeconds(1);
  private static final Duration LONGEST_BACKOFF = Duration.ofMinutes(1);
  private static final Duration END_LIMIT = Duration.ofSeconds(1); // the program is about to exit
  private static final Duration FIRST_RELEASE_BACKOFF = Duration.ofMillis(100);
  private static final Duration LONGEST_RELEASE_BACKOFF = Duration.ofSeconds(5);

  /** Runs releases in separate threads, because the handlers' executor may limit its threads. */
  private static final Executor RELEASING = work -> thread(work).start();

  /** The work on one cluster. */
  public interface Handler {
    void work(EngagedCluster cluster) throws Exception;
  }

  private record Member(EngagedCluster cluster, CompletableFuture<Void> done, AtomicBoolean isReleasing) {}

  private final DiscoveryClient client;
  private final WatchOptions options;
  private final Executor threads;
  private final BiConsumer<EngagedCluster, Throwable> onError;
  private final Map<String, Member> members = new HashMap<>(); // used only by the thread of run()
  private final Map<String, CompletableFuture<Void>> ending = new HashMap<>();
  private volatile Watch watch; // of the current run
  private volatile boolean isClosed;

  /** Create a fleet that runs each handler in its own thread, and logs errors. */
  public Fleet(DiscoveryClient client, WatchOptions options) {
    this(client, options, work -> thread(work).start(), Fleet::log);
  }

  /**
   * @param threads runs the handlers; each occupies a thread while its cluster is engaged
   * @param onError called with everything that a handler throws, even after the end of its engagement, and with
   *     rejections of the executor
   */
  public Fleet(
      DiscoveryClient client, WatchOptions options, Executor threads, BiConsumer<EngagedCluster, Throwable> onError) {
    this.client = client;
    this.options = options.subscriber().isEmpty() ? options.withSubscriber("java/" + UUID.randomUUID()) : options;
    this.threads = threads;
    this.onError = onError;
  }

  /**
   * Run until the fleet or its client is closed, and all handlers have ended. Throws errors that a retry cannot fix. It may be run
   * again afterwards, and begins with all clusters.
   */
  public void run(Handler handler) throws InterruptedException {
    watch = client.watch(options);
    if (isClosed) {
      watch.close();
    }
    try {
      watch.follow(news -> receive(news, handler));
    } finally {
      for (String name : members.keySet().toArray(String[]::new)) {
        disengage(name);
      }
      CompletableFuture.allOf(ending.values().toArray(CompletableFuture[]::new)).join();
      watch.endEngagements();
      try {
        client.endSubscription(options.subscriber(), END_LIMIT);
      } catch (DiscoveryException error) {
        // Drains that have begun, or begin within a minute, then wait for this subscriber until their deadline.
      }
    }
  }

  @Override
  public void close() {
    isClosed = true;
    Watch running = watch;
    if (running != null) {
      running.close();
    }
  }

  private void receive(News news, Handler handler) {
    if (news instanceof Event event && event.type() == Event.Type.ENGAGED) {
      engage(event, handler);
    }
    Cluster cluster = news.cluster();
    Member member = members.get(cluster.getName());
    member.cluster.update(cluster);
    if (news instanceof Event event && event.type() == Event.Type.DISENGAGED) {
      disengage(cluster.getName());
    } else if (cluster.hasDraining()) { // also with only another incarnation: the daemon waits for a release of this one
      release(member);
    }
  }

  private void engage(Event event, Handler handler) {
    Cluster cluster = event.cluster();
    var engaged = new EngagedCluster(watch.credential(event), cluster);
    var before = ending.getOrDefault(cluster.getName(), CompletableFuture.completedFuture(null));
    var done = cluster.hasDraining() ? before : before.thenRunAsync(() -> work(engaged, handler), threads);
    // If the executor rejects the work, the error is reported. The future must not fail, because the next engagement waits for it.
    members.put(cluster.getName(), new Member(engaged, done.exceptionally(error -> report(engaged, error)), new AtomicBoolean()));
  }

  private void disengage(String name) {
    Member member = members.remove(name);
    if (member != null) {
      member.cluster.disengage();
      ending.values().removeIf(CompletableFuture::isDone);
      ending.put(name, member.done);
    }
  }

  private void release(Member member) {
    member.cluster.end();
    if (member.isReleasing.compareAndSet(false, true)) { // otherwise each event would occupy a thread
      member.done.thenRunAsync(() -> releaseUntilAnswered(member), RELEASING);
    }
  }

  /** Release a draining cluster until the daemon has answered for its current incarnation. The next event begins another release. */
  private void releaseUntilAnswered(Member member) {
    var backoff = FIRST_RELEASE_BACKOFF;
    while (member.cluster.isEngaged()) {
      Cluster draining = member.cluster.current();
      try {
        client.release(draining, options.subscriber());
      } catch (DiscoveryException error) {
        // If another daemon has taken over, it sends the cluster again, with its own incarnation.
        if (!error.isFinal() && error.code() != Status.Code.NOT_FOUND) {
          try {
            var delayMs = Math.round(backoff.toMillis() * ThreadLocalRandom.current().nextDouble(0.5, 1));
            Thread.sleep(delayMs + error.retryAfter().toMillis());
          } catch (InterruptedException interrupted) {
            return;
          }
          backoff = longer(backoff, LONGEST_RELEASE_BACKOFF);
          continue;
        }
      }
      member.isReleasing.set(false);
      boolean isAnswered = member.cluster.current().getIncarnation().equals(draining.getIncarnation());
      if (isAnswered || !member.isReleasing.compareAndSet(false, true)) {
        return;
      }
    }
  }

  private void work(EngagedCluster cluster, Handler handler) {
    for (var backoff = FIRST_BACKOFF; !cluster.hasEnded(); backoff = longer(backoff, LONGEST_BACKOFF)) {
      try {
        handler.work(cluster);
        return;
      } catch (Throwable error) {
        report(cluster, error);
        if (error instanceof InterruptedException || !sleep(cluster, backoff)) {
          return; // the thread was interrupted: stop
        }
      }
    }
  }

  private static boolean sleep(EngagedCluster cluster, Duration backoff) {
    try {
      cluster.awaitEnd(backoff);
      return true;
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      return false;
    }
  }

  private Void report(EngagedCluster cluster, Throwable error) {
    try {
      onError.accept(cluster, error);
    } catch (Throwable thrown) {
      error.addSuppressed(thrown);
      log(cluster, error);
    }
    return null;
  }

  private static Duration longer(Duration backoff, Duration longest) {
    var doubled = backoff.multipliedBy(2);
    return doubled.compareTo(longest) > 0 ? longest : doubled;
  }

  private static Thread thread(Runnable work) {
    var thread = new Thread(work, "milo-discovery cluster");
    thread.setDaemon(true);
    return thread;
  }

  private static void log(EngagedCluster cluster, Throwable error) {
    System.getLogger("com.miloapis.discovery")
        .log(System.Logger.Level.ERROR, "the handler of cluster " + cluster.name() + " failed", error);
  }
}
