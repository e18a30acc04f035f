package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.DiscoveryServiceGrpc;
import com.miloapis.discovery.v1.Kubeconfig;
import com.miloapis.discovery.v1.WatchClustersRequest;
import com.miloapis.discovery.v1.WatchClustersResponse;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** One subscription, over as many streams as it takes. */
public final class Watch implements AutoCloseable {
  private static final int HEARTBEATS_MISSED = 3;
  private static final Duration FIRST_BACKOFF = Duration.ofMillis(200);
  private static final Duration LONGEST_BACKOFF = Duration.ofSeconds(5);

  /** What the thread of {@link #run} waits for. */
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
  private final Ownership ownership;
  private volatile LinkedBlockingQueue<Signal> signals = new LinkedBlockingQueue<>();
  private volatile boolean isClosed;
  private Duration backoff = FIRST_BACKOFF;

  Watch(DiscoveryClient client, WatchOptions options) {
    this.client = client;
    this.options = options;
    this.ownership = new Ownership(client::renewOwnership, () -> signals.add(Notice.OWNERSHIP_CHANGED));
  }

  /** The engaged clusters, as last known. */
  public List<Cluster> clusters() {
    return session.view().stream().map(Session.Known::cluster).toList();
  }

  /** The engaged cluster of this name, as last known; null if there is none. */
  public Cluster cluster(String name) {
    Session.Known known = session.get(name);
    return known == null ? null : known.cluster();
  }

  /** The newest kubeconfig that the stream delivered for a cluster; null if there is none. */
  public Kubeconfig kubeconfig(String name) {
    Session.Known known = session.get(name);
    return known == null ? null : known.kubeconfig();
  }

  /** Confirm that the work on a draining cluster has ended. */
  public void release(String name) {
    Cluster cluster = cluster(name);
    if (cluster != null) { // otherwise it has ended already
      client.release(cluster, options.subscriber());
    }
  }

  /**
   * Call the handler with each event until the watch is closed. Throws only errors that a retry cannot fix. Nothing more is read
   * while the handler runs, and the loss of an ownership is not reported: leave long work to other threads, as {@link Fleet} does.
   */
  public void run(Consumer<Event> handler) throws InterruptedException {
    try (ownership) {
      while (!isClosed) {
        if (!ownership.isHeld()) {
          session.loseOwnership().forEach(handler);
          signals.poll(1, TimeUnit.SECONDS);
          continue;
        }
        Duration delay = nextDelay();
        try {
          readStream(handler);
        } catch (DiscoveryException error) {
          if (error.isFinal()) {
            throw error;
          }
          delay = delay.compareTo(error.retryAfter()) < 0 ? error.retryAfter() : delay;
          options.onDisconnect().accept(error);
        }
        if (ownership.isHeld() && !isClosed) {
          sleep(delay);
        }
      }
    }
  }

  @Override
  public void close() {
    isClosed = true;
    signals.add(Notice.CLOSED);
  }

  /** Read one stream, on a connection of its own, until it ends. */
  private void readStream(Consumer<Event> handler) throws InterruptedException {
    ManagedChannel channel = client.connect();
    var received = new LinkedBlockingQueue<Signal>();
    signals = received;
    try {
      var call = openStream(channel, received);
      while (!isClosed) {
        requireOwnership(); // a change from before the queue was replaced
        Duration silence = options.heartbeat().multipliedBy(HEARTBEATS_MISSED);
        Signal signal = received.poll(silence.toMillis(), TimeUnit.MILLISECONDS);
        if (signal == null) {
          throw new StreamBrokenException("no heartbeat for " + silence.toSeconds() + " s");
        } else if (signal instanceof Ended ended) {
          throw DiscoveryException.of(ended.status().asRuntimeException(ended.trailers()));
        } else if (signal instanceof Batch batch && batch.message().getSharded()) {
          ownership.begin();
        }
        requireOwnership();
        if (signal instanceof Batch batch) {
          session.receive(batch.message()).forEach(handler);
          backoff = FIRST_BACKOFF;
          call.request(1);
        }
      }
    } finally {
      channel.shutdownNow();
    }
  }

  private void requireOwnership() {
    if (!ownership.isHeld()) {
      throw new StreamBrokenException("the daemon does not own its clusters at present");
    }
  }

  private ClientCall<WatchClustersRequest, WatchClustersResponse> openStream(
      ManagedChannel channel, LinkedBlockingQueue<Signal> received) {
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
    var call =
        ClientInterceptors.intercept(channel, client.authorization())
            .newCall(DiscoveryServiceGrpc.getWatchClustersMethod(), CallOptions.DEFAULT);
    call.start(
        new ClientCall.Listener<>() {
          @Override
          public void onMessage(WatchClustersResponse message) {
            received.add(new Batch(message));
          }

          @Override
          public void onClose(Status status, Metadata trailers) {
            // A stream that ends without an error has ended all the same.
            received.add(new Ended(status.isOk() ? Status.UNKNOWN.withDescription("the daemon ended the stream") : status, trailers));
          }
        },
        new Metadata());
    call.sendMessage(request.build());
    call.halfClose();
    call.request(1);
    return call;
  }

  private Duration nextDelay() {
    var delay = Duration.ofMillis(Math.round(backoff.toMillis() * ThreadLocalRandom.current().nextDouble(0.5, 1)));
    var doubled = backoff.multipliedBy(2);
    backoff = doubled.compareTo(LONGEST_BACKOFF) > 0 ? LONGEST_BACKOFF : doubled;
    return delay;
  }

  /** Sleep, or until the ownership changes or the watch is closed. */
  private void sleep(Duration delay) throws InterruptedException {
    signals = new LinkedBlockingQueue<>(); // what the stream still sends does not count
    if (!isClosed && ownership.isHeld()) {
      signals.poll(delay.toMillis(), TimeUnit.MILLISECONDS);
    }
  }
}
