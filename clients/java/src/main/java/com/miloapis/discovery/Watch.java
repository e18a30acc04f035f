package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.DiscoveryServiceGrpc;
import com.miloapis.discovery.v1.Kubeconfig;
import com.miloapis.discovery.v1.WatchClustersRequest;
import com.miloapis.discovery.v1.WatchClustersResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** A subscription, which outlives its streams. */
public final class Watch implements AutoCloseable {
  private static final int HEARTBEATS_MISSED = 3;
  private static final Duration FIRST_BACKOFF = Duration.ofMillis(200);
  private static final Duration LONGEST_BACKOFF = Duration.ofSeconds(5);
  private static final Duration HEALTHY = Duration.ofSeconds(10); // a stream that lasted this long resets the backoff

  /** An event for which the thread of {@link #run} waits. */
  private sealed interface Signal {}

  private record Batch(WatchClustersResponse message) implements Signal {}

  private record Ended(Status status, Metadata trailers) implements Signal {}

  private enum Notice implements Signal {
    OWNERSHIP_CHANGED,
    CLOSED
  }

  private final DiscoveryClient client;
  private final WatchOptions options;
  private final Session session = new Session(Access::isUsable);
  private Ownership ownership; // of the current run, since it is not renewed between two
  /** Futures by name: the next event of the cluster completes them, for callers that wait for its kubeconfig. */
  private final Map<String, CompletableFuture<Void>> nextEvents = new ConcurrentHashMap<>();
  private volatile LinkedBlockingQueue<Signal> signals = new LinkedBlockingQueue<>();
  private volatile boolean isClosed;
  private Duration backoff = FIRST_BACKOFF;
  private long connectedAt; // when the first batch of the stream arrived, of System.nanoTime; 0 if none has

  Watch(DiscoveryClient client, WatchOptions options) {
    this.client = client;
    this.options = options;
  }

  /** The last known state of the engaged clusters. */
  public List<Cluster> clusters() {
    return session.view().stream().map(Session.Known::cluster).toList();
  }

  /** The last known state of the engaged cluster of this name; null if there is none. */
  public Cluster cluster(String name) {
    Session.Known known = session.get(name);
    return known == null ? null : known.cluster();
  }

  /** The newest kubeconfig that the stream delivered for a cluster; null if there is none. */
  public Kubeconfig kubeconfig(String name) {
    Session.Known known = session.get(name);
    return known == null ? null : known.kubeconfig();
  }

  /** Return the credential of an event's engagement. It is renewed, and throws once the engagement has ended. */
  public Credential credential(Event event) {
    String name = event.cluster().getName();
    return new Credential(
        name,
        () -> {
          Session.Known known = session.get(name);
          return known != null && known.engagement() == event.engagement() ? known : null;
        },
        (incarnation, isRetry) -> client.issueCredential(name, incarnation, isRetry),
        () -> nextEvents.computeIfAbsent(name, any -> new CompletableFuture<>()));
  }

  /** Confirm that the work on a draining cluster has ended. */
  public void release(String name) {
    Cluster cluster = cluster(name);
    if (cluster != null) { // otherwise it is already disengaged
      client.release(cluster, options.subscriber());
    }
  }

  /**
   * Call the handler with each event until the watch is closed. Throws errors that a retry cannot fix, and exceptions of the handler.
   * While the handler runs, no further events are read, and a lost ownership is not reported: run long work in other threads, like
   * {@link Fleet}.
   */
  public void run(Consumer<Event> handler) throws InterruptedException {
    follow(
        news -> {
          if (news instanceof Event event) {
            handler.accept(event);
          }
        });
  }

  /** Refuse the credentials of all engagements: no stream tells any more when they end. */
  void endEngagements() {
    session.drop();
  }

  /** Run like {@link #run}, with a handler of all news. */
  void follow(Consumer<News> handler) throws InterruptedException {
    client.opened(this);
    ownership =
        new Ownership(
            timeout -> client.renewOwnership(session.isEmpty() ? "" : options.subscriber(), timeout),
            () -> signals.add(Notice.OWNERSHIP_CHANGED));
    try {
      while (!isClosed) {
        if (!ownership.isHeld()) {
          notified(session.loseOwnership()).forEach(handler);
          ownership.acknowledgeLoss();
          signals.poll(1, TimeUnit.SECONDS);
          continue;
        }
        DiscoveryException error = readStream(handler);
        Duration delay = nextDelay();
        if (error != null) {
          if (error.isFinal()) {
            throw error;
          }
          delay = delay.plus(error.retryAfter()); // with jitter: all subscribers of the daemon have got the same time
          report(error);
        }
        if (ownership.isHeld() && !isClosed) {
          sleep(delay);
        }
      }
    } finally {
      ownership.close();
      client.closed(this);
    }
  }

  private void report(DiscoveryException error) {
    try {
      options.onDisconnect().accept(error);
    } catch (Throwable thrown) { // an Error too: it must not end the watch
      System.getLogger("com.miloapis.discovery").log(System.Logger.Level.ERROR, "onDisconnect failed", thrown);
    }
  }

  @Override
  public void close() {
    isClosed = true;
    signals.add(Notice.CLOSED);
  }

  /** Read one stream, on a new channel, until it ends. Returns the error; null if the watch was closed. */
  private DiscoveryException readStream(Consumer<News> handler) throws InterruptedException {
    var received = new LinkedBlockingQueue<Signal>();
    signals = received;
    connectedAt = 0;
    ManagedChannel channel;
    ClientInterceptor authorization;
    try {
      authorization = client.authorization();
      channel = client.connect();
    } catch (DiscoveryException error) {
      return error; // the files of the credentials may be renewed at this moment
    }
    try {
      var call = openStream(ClientInterceptors.intercept(channel, authorization), received);
      while (!isClosed) {
        List<News> news;
        try {
          news = nextNews(received);
        } catch (DiscoveryException error) {
          return error;
        }
        news.forEach(handler); // outside of the try, because exceptions of the handler do not break the stream
        try {
          call.request(1);
        } catch (RejectedExecutionException error) {
          if (!isClosed) {
            throw error;
          } // the client was closed, and the threads of its sockets have ended
        }
      }
      return null;
    } finally {
      client.disconnect(channel);
    }
  }

  /** Wait for a batch, and apply it. Returns no news if the watch was closed. */
  private List<News> nextNews(LinkedBlockingQueue<Signal> received) throws InterruptedException {
    Duration silence = options.heartbeat().multipliedBy(HEARTBEATS_MISSED);
    long deadline = System.nanoTime() + silence.toNanos();
    while (!isClosed) {
      requireOwnership(); // it may have been lost before the queue was replaced
      Signal signal = received.poll(deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
      if (signal == null) {
        throw new StreamBrokenException("no heartbeat for " + silence.toSeconds() + " s");
      } else if (signal instanceof Ended ended) {
        throw DiscoveryException.of(ended.status().asRuntimeException(ended.trailers()));
      } else if (signal instanceof Batch batch && batch.message().getSharded()) {
        ownership.begin();
      }
      requireOwnership();
      if (signal instanceof Batch batch) {
        List<News> news = notified(session.receive(batch.message()));
        connectedAt = connectedAt == 0 ? System.nanoTime() : connectedAt;
        return news;
      }
    }
    return List.of();
  }

  /** Complete the futures that wait for events of these clusters, after the events were applied to the view. */
  private <T extends News> List<T> notified(List<T> news) {
    for (News each : news) {
      var waiting = each instanceof Event event ? nextEvents.remove(event.cluster().getName()) : null;
      if (waiting != null) {
        waiting.complete(null);
      }
    }
    return news;
  }

  private void requireOwnership() {
    if (!ownership.isHeld()) {
      throw new StreamBrokenException("the daemon's ownership of its clusters has expired or is not confirmed");
    }
  }

  private ClientCall<WatchClustersRequest, WatchClustersResponse> openStream(
      Channel channel, LinkedBlockingQueue<Signal> received) {
    var heartbeat = options.heartbeat();
    var request =
        WatchClustersRequest.newBuilder()
            .setFilter(options.filter())
            .setResumeRevision(session.open())
            .setIncludeKubeconfigs(options.includeKubeconfigs())
            .setConfirmReleases(!options.subscriber().isEmpty())
            .setSubscriber(options.subscriber())
            .setAcceptsPendingSources(true);
    request.getHeartbeatIntervalBuilder().setSeconds(heartbeat.getSeconds()).setNanos(heartbeat.getNano());
    var call = channel.newCall(DiscoveryServiceGrpc.getWatchClustersMethod(), CallOptions.DEFAULT);
    call.start(
        new ClientCall.Listener<>() {
          @Override
          public void onMessage(WatchClustersResponse message) {
            received.add(new Batch(message));
          }

          @Override
          public void onClose(Status status, Metadata trailers) {
            // A stream that ends with OK is broken as well.
            received.add(new Ended(status.isOk() ? Status.UNKNOWN.withDescription("the daemon ended the stream") : status, trailers));
          }
        },
        new Metadata());
    call.sendMessage(request.build());
    call.halfClose();
    call.request(1);
    return call;
  }

  /** Return the delay before the next stream. Only a stream that has worked for a while resets it: a snapshot is costly. */
  private Duration nextDelay() {
    if (connectedAt != 0 && System.nanoTime() - connectedAt >= HEALTHY.toNanos()) {
      backoff = FIRST_BACKOFF;
    }
    var delay = Duration.ofMillis(Math.round(backoff.toMillis() * ThreadLocalRandom.current().nextDouble(0.5, 1)));
    var doubled = backoff.multipliedBy(2);
    backoff = doubled.compareTo(LONGEST_BACKOFF) > 0 ? LONGEST_BACKOFF : doubled;
    return delay;
  }

  /** Sleep until the delay has elapsed, the ownership changes or the watch is closed. */
  private void sleep(Duration delay) throws InterruptedException {
    signals = new LinkedBlockingQueue<>(); // discards late signals of the former stream
    if (!isClosed && ownership.isHeld()) {
      signals.poll(delay.toMillis(), TimeUnit.MILLISECONDS);
    }
  }
}
