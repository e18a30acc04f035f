package com.miloapis.discovery;

import static com.miloapis.discovery.FakeDaemon.cluster;
import static com.miloapis.discovery.FakeDaemon.disengaged;
import static com.miloapis.discovery.FakeDaemon.engaged;
import static com.miloapis.discovery.FakeDaemon.event;
import static com.miloapis.discovery.FakeDaemon.until;
import static com.miloapis.discovery.v1.DisengageReason.DISENGAGE_REASON_DELETED;
import static com.miloapis.discovery.v1.DisengageReason.DISENGAGE_REASON_NOT_READY;
import static com.miloapis.discovery.v1.DisengageReason.DISENGAGE_REASON_REPLACED;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Timestamp;
import com.miloapis.discovery.v1.ClusterEvent;
import com.miloapis.discovery.v1.EndSubscriptionRequest;
import com.miloapis.discovery.v1.IssueKubeconfigRequest;
import com.miloapis.discovery.v1.ReleaseClusterRequest;
import io.grpc.Status;
import java.io.IOException;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiConsumer;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

class FleetTest {
  private final List<String> steps = new CopyOnWriteArrayList<>();
  private final Map<String, EngagedCluster> clusters = new ConcurrentHashMap<>();
  private final List<Throwable> reported = new CopyOnWriteArrayList<>();
  private FakeDaemon daemon;
  private DiscoveryClient client;
  private Fleet fleet;
  private Thread running;

  @BeforeEach
  void startDaemon() throws IOException {
    daemon = new FakeDaemon();
    client = daemon.client();
  }

  @AfterEach
  void stop() throws InterruptedException {
    stopFleet();
    client.close();
    daemon.close();
  }

  private void stopFleet() throws InterruptedException {
    fleet.close();
    running.join();
  }

  private void start(WatchOptions options, BiConsumer<EngagedCluster, Throwable> onError, Fleet.Handler handler) {
    fleet =
        new Fleet(
            client,
            options.withSubscriber("test"),
            work -> {
              var thread = new Thread(null, work, "handler", 256 << 10);
              thread.setDaemon(true);
              thread.start();
            },
            onError);
    running =
        new Thread(
            () -> {
              try {
                fleet.run(handler);
              } catch (InterruptedException interrupted) {
                throw new AssertionError(interrupted);
              }
            });
    running.start();
  }

  private void start(Fleet.Handler handler) {
    start(WatchOptions.defaults(), (cluster, error) -> reported.add(error), handler);
  }

  private void untilEnd(EngagedCluster cluster) throws InterruptedException {
    clusters.put(cluster.current().getUid(), cluster);
    cluster.awaitEnd();
  }

  private static String token(EngagedCluster cluster) {
    try {
      return cluster.credential().access().token();
    } catch (DiscoveryException error) {
      return error.code().name();
    }
  }

  private List<String> issuedFor() {
    return daemon.called(IssueKubeconfigRequest.class).stream().map(IssueKubeconfigRequest::getIncarnation).toList();
  }

  @Test
  void handlerOfReplacedClusterGetsNoCredentialAndEndsBeforeTheNextBegins() {
    var linger = new CountDownLatch(1);
    start(
        cluster -> {
          String uid = cluster.current().getUid();
          clusters.put(uid, cluster);
          steps.add("begin " + uid + " " + token(cluster));
          cluster.awaitEnd();
          steps.add("signal " + uid + " " + token(cluster));
          if (uid.equals("uid-a")) {
            linger.await();
          }
          steps.add("end " + uid);
        });
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> steps.size() == 1, "the handler begins");
    var other = event(ClusterEvent.Type.TYPE_ENGAGED, cluster("a").setUid("other").setIncarnation("a-2")).build();
    daemon.stream(1).send(disengaged("a", DISENGAGE_REASON_REPLACED), other);
    until(() -> steps.size() == 2, "the handler is notified of the end");
    linger.countDown();
    until(() -> steps.size() == 4, "the next handler begins");
    assertEquals(List.of("begin uid-a token-1", "signal uid-a NOT_FOUND", "end uid-a", "begin other token-2"), steps);
    assertEquals("NOT_FOUND", token(clusters.get("uid-a")));
    assertEquals(List.of("a-1", "a-2"), issuedFor());
  }

  @Test
  void reengagedClusterGivesNoCredentialToTheFormerHandler() {
    start(
        WatchOptions.defaults().withKubeconfigs(),
        (cluster, error) -> reported.add(error),
        cluster -> {
          String incarnation = cluster.current().getIncarnation();
          steps.add(incarnation + " " + token(cluster));
          cluster.awaitEnd();
          steps.add(incarnation + " " + token(cluster));
        });
    var hour = Duration.ofHours(1);
    var first = event(ClusterEvent.Type.TYPE_ENGAGED, cluster("a")).setKubeconfig(FakeDaemon.kubeconfig("a", "one", hour));
    daemon.stream(1).snapshot(first.build());
    until(() -> steps.size() == 1, "the handler begins");
    var again = event(ClusterEvent.Type.TYPE_ENGAGED, cluster("a").setIncarnation("a-2"));
    again.setKubeconfig(FakeDaemon.kubeconfig("a", "two", hour));
    daemon.stream(1).send(disengaged("a", DISENGAGE_REASON_NOT_READY), again.build());
    until(() -> steps.size() == 3, "the next handler begins");
    assertEquals(List.of("a-1 one", "a-1 NOT_FOUND", "a-2 two"), steps);
  }

  @Test
  void credentialIsIssuedForTheNewIncarnationAfterRestartOfTheDaemon() {
    start(this::untilEnd);
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> clusters.size() == 1, "the cluster is engaged");
    daemon.stream(1).end(Status.UNAVAILABLE);
    daemon.stream(2).snapshot(event(ClusterEvent.Type.TYPE_ENGAGED, cluster("a").setIncarnation("a-2")).build(), engaged("b"));
    until(() -> clusters.size() == 2, "the stream is restored");
    assertEquals("token-1", token(clusters.get("uid-a")));
    assertEquals(List.of("a-2"), issuedFor());
  }

  @Test
  void fleetContinuesAfterHandlerAndOnErrorThrow() throws InterruptedException {
    var begun = new ConcurrentHashMap<String, Integer>();
    var thrown = Map.of("exception", new IOException("broken"), "error", new StackOverflowError(), "unchecked", new IllegalStateException());
    start(
        WatchOptions.defaults(),
        (cluster, error) -> {
          reported.add(error);
          throw new AssertionError("of onError");
        },
        cluster -> {
          begun.merge(cluster.name(), 1, Integer::sum);
          Throwable error = thrown.get(cluster.name());
          if (error instanceof Exception exception) {
            throw exception;
          } else if (error instanceof Error fatal) {
            throw fatal;
          }
          cluster.awaitEnd();
        });
    daemon.stream(1).snapshot(thrown.keySet().stream().map(FakeDaemon::engaged).toArray(ClusterEvent[]::new));
    until(() -> begun.values().stream().filter(times -> times > 1).count() == 3, "each handler is called again");
    assertEquals(Set.copyOf(thrown.values()), Set.copyOf(reported));
    daemon.stream(1).send(disengaged("error", DISENGAGE_REASON_DELETED), engaged("well"));
    until(() -> begun.containsKey("well"), "the next cluster begins");
    int before = begun.get("error");
    daemon.stream(1).send(engaged("error"));
    until(() -> begun.get("error") > before, "the cluster has a handler again");
    stopFleet();
    assertEquals(1, daemon.called(EndSubscriptionRequest.class).size());
  }

  @Test
  void drainingClusterIsReleasedAfterItsHandlerEndsEvenWithAnError() {
    var finish = new CountDownLatch(1);
    start(
        cluster -> {
          clusters.put(cluster.name(), cluster);
          cluster.awaitEnd();
          steps.add(token(cluster));
          finish.await();
          throw new NoClassDefFoundError("while finishing");
        });
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> clusters.containsKey("a"), "the handler begins");
    var draining = cluster("a");
    draining.getDrainingBuilder().setReason(DISENGAGE_REASON_NOT_READY);
    daemon.stream(1).send(event(ClusterEvent.Type.TYPE_UPDATED, draining).build());
    until(() -> steps.size() == 1, "the handler is notified of the drain");
    assertEquals(List.of("token-1"), steps, "the credential is valid until the cluster is disengaged");
    assertEquals(0, daemon.called(ReleaseClusterRequest.class).size());
    finish.countDown();
    until(() -> daemon.called(ReleaseClusterRequest.class).size() == 1, "the cluster is released");
    assertEquals("a-1", daemon.called(ReleaseClusterRequest.class).get(0).getIncarnation());
    until(() -> reported.size() == 1, "the error is reported");
  }

  @Test
  void clusterIsReleasedAndErrorIsReportedIfTheExecutorRejectsItsHandler() {
    fleet =
        new Fleet(
            client,
            WatchOptions.defaults().withSubscriber("test"),
            work -> {
              throw new OutOfMemoryError("unable to create native thread");
            },
            (cluster, error) -> reported.add(error));
    running = new Thread(() -> assertThrowsNothing(() -> fleet.run(this::untilEnd)));
    running.start();
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> reported.size() == 1, "the error is reported");
    var draining = cluster("a");
    draining.getDrainingBuilder().setReason(DISENGAGE_REASON_NOT_READY);
    daemon.stream(1).send(event(ClusterEvent.Type.TYPE_UPDATED, draining).build());
    until(() -> daemon.called(ReleaseClusterRequest.class).size() == 1, "the cluster is released");
  }

  @Test
  void failedReleaseIsRetriedWhileTheStreamIsOpen() {
    start(this::untilEnd);
    daemon.releaseFailure = Status.RESOURCE_EXHAUSTED;
    var draining = cluster("a");
    draining.getDrainingBuilder().setReason(DISENGAGE_REASON_NOT_READY);
    daemon.stream(1).snapshot(engaged("a"));
    daemon.stream(1).send(event(ClusterEvent.Type.TYPE_UPDATED, draining).build());
    until(() -> daemon.called(ReleaseClusterRequest.class).size() == 1, "the release is refused");
    daemon.releaseFailure = null;
    until(() -> daemon.called(ReleaseClusterRequest.class).size() == 2, "the release is retried");
  }

  @Test
  void releaseIsNotRetriedAfterTheClusterIsGone() {
    start(this::untilEnd);
    daemon.releaseFailure = Status.RESOURCE_EXHAUSTED;
    var draining = cluster("a");
    draining.getDrainingBuilder().setReason(DISENGAGE_REASON_NOT_READY);
    daemon.stream(1).snapshot(event(ClusterEvent.Type.TYPE_ENGAGED, draining).build());
    until(() -> daemon.called(ReleaseClusterRequest.class).size() == 3, "the release is retried");
    daemon.stream(1).snapshot(engaged("b"));
    until(() -> clusters.containsKey("uid-b"), "the snapshot without the cluster is applied");
    until(() -> releasing() == 0, "the release has ended");
  }

  @Test
  void fleetThatRunsAgainBeginsWithAllClusters() {
    fleet = new Fleet(client, WatchOptions.defaults());
    running =
        new Thread(
            () -> {
              assertThrows(DiscoveryException.class, () -> fleet.run(this::untilEnd));
              clusters.clear();
              assertThrowsNothing(() -> fleet.run(this::untilEnd));
            });
    running.start();
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> clusters.containsKey("uid-a"), "the handler begins");
    daemon.stream(1).end(Status.PERMISSION_DENIED);
    daemon.stream(2).snapshot(engaged("a"));
    until(() -> clusters.containsKey("uid-a"), "the handler begins again");
    assertEquals(1, daemon.called(EndSubscriptionRequest.class).size());
  }

  private static long releasing() {
    return Thread.getAllStackTraces().values().stream()
        .filter(stack -> List.of(stack).stream().anyMatch(call -> call.getClassName().equals(Fleet.class.getName()) && call.getMethodName().equals("release")))
        .count();
  }

  @Test
  void drainIsReleasedAgainUnderTheIncarnationOfARestartedDaemon() {
    start(this::untilEnd);
    var draining = cluster("a");
    draining.getDrainingBuilder().setReason(DISENGAGE_REASON_NOT_READY);
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> clusters.containsKey("uid-a"), "the handler begins");
    daemon.stream(1).send(event(ClusterEvent.Type.TYPE_UPDATED, draining).build());
    until(() -> released().size() == 1, "the cluster is released");
    daemon.stream(1).end(Status.UNAVAILABLE);
    daemon.stream(2).snapshot(event(ClusterEvent.Type.TYPE_ENGAGED, draining.setIncarnation("a-2")).build());
    until(() -> released().size() == 2, "the cluster is released again");
    assertEquals(List.of("a-1", "a-2"), released());
    assertEquals("a-2", clusters.get("uid-a").current().getIncarnation());
  }

  private List<String> released() {
    return daemon.called(ReleaseClusterRequest.class).stream().map(ReleaseClusterRequest::getIncarnation).toList();
  }

  private interface Running {
    void run() throws InterruptedException;
  }

  private static void assertThrowsNothing(Running running) {
    try {
      running.run();
    } catch (InterruptedException interrupted) {
      throw new AssertionError(interrupted);
    }
  }

  @Test
  void pushedKubeconfigIsUsedInsteadOfAPendingOlderResponse() {
    var hour = Duration.ofHours(1);
    var older = FakeDaemon.kubeconfig("a", "older", hour);
    var respond = new CountDownLatch(1);
    daemon.issue =
        request -> {
          awaitUninterrupted(respond);
          return older;
        };
    start(
        WatchOptions.defaults().withKubeconfigs(),
        (cluster, error) -> reported.add(error),
        cluster -> {
          clusters.put(cluster.name(), cluster);
          steps.add(cluster.name() + " " + token(cluster));
          cluster.awaitEnd();
        });
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> daemon.called(IssueKubeconfigRequest.class).size() == 1, "a kubeconfig is requested");
    var pushed = event(ClusterEvent.Type.TYPE_KUBECONFIG, cluster("a")).setKubeconfig(FakeDaemon.kubeconfig("a", "newer", hour));
    daemon.stream(1).send(pushed.build(), engaged("b"));
    until(() -> clusters.containsKey("b"), "the stream has pushed a newer kubeconfig");
    assertEquals("newer", token(clusters.get("a")));
    until(() -> steps.contains("a newer"), "the caller that waits for the response gets the pushed kubeconfig");
    respond.countDown();
    until(() -> steps.size() == 2, "the other response has arrived");
    assertEquals(List.of("a newer", "b older"), steps);
    assertEquals("newer", token(clusters.get("a")));
  }

  @Test
  void kubeconfigReplacesOneWhoseIssueTimeIsInTheFuture() {
    start(WatchOptions.defaults().withKubeconfigs(), (cluster, error) -> reported.add(error), this::untilEnd);
    var hour = Duration.ofHours(1);
    var ahead = FakeDaemon.kubeconfig("a", "ahead", Instant.now().plus(hour), hour, hour);
    daemon.stream(1).snapshot(event(ClusterEvent.Type.TYPE_ENGAGED, cluster("a")).setKubeconfig(ahead).build());
    until(() -> clusters.containsKey("uid-a"), "the handler begins");
    assertEquals("ahead", token(clusters.get("uid-a")));
    var current = event(ClusterEvent.Type.TYPE_KUBECONFIG, cluster("a")).setKubeconfig(FakeDaemon.kubeconfig("a", "current", hour));
    daemon.stream(1).send(current.build(), engaged("b"));
    until(() -> clusters.containsKey("uid-b"), "the stream has pushed another kubeconfig");
    assertEquals("current", token(clusters.get("uid-a")));
  }

  @Test
  void credentialIsRequestedAgainAfterTheEndpointChanged() {
    start(this::untilEnd);
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> clusters.containsKey("uid-a"), "the handler begins");
    assertEquals("token-1", token(clusters.get("uid-a")));
    var moved = event(ClusterEvent.Type.TYPE_UPDATED, cluster("a").setEndpoint("https://moved.test")).build();
    daemon.stream(1).send(moved, engaged("b"));
    until(() -> clusters.containsKey("uid-b"), "the cluster is updated");
    assertEquals("token-2", token(clusters.get("uid-a")));
  }

  @Test
  void kubeconfigThatWasDeliveredForAFormerEndpointIsNotUsed() {
    start(WatchOptions.defaults().withKubeconfigs(), (cluster, error) -> reported.add(error), this::untilEnd);
    var delivered = event(ClusterEvent.Type.TYPE_ENGAGED, cluster("a")).setKubeconfig(FakeDaemon.kubeconfig("a", "former", Duration.ofHours(1)));
    daemon.stream(1).snapshot(delivered.build());
    var moved = event(ClusterEvent.Type.TYPE_UPDATED, cluster("a").setEndpoint("https://moved.test")).build();
    daemon.stream(1).send(moved, engaged("b"));
    until(() -> clusters.containsKey("uid-a") && clusters.containsKey("uid-b"), "the cluster is updated");
    assertEquals("token-1", token(clusters.get("uid-a")));
  }

  @Test
  void credentialWithInvalidTimestampsIsUsedAsOneWithoutThem() {
    daemon.issue =
        request -> {
          var invalid = Timestamp.newBuilder().setSeconds(Long.MAX_VALUE);
          var issued = FakeDaemon.kubeconfig(request.getCluster(), "token", Duration.ofHours(1)).toBuilder();
          return issued.setIssuedAt(invalid).setRefreshAfter(invalid).setExpiresAt(invalid).build();
        };
    start(
        cluster -> {
          steps.add(token(cluster));
          cluster.awaitEnd();
        });
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> !steps.isEmpty(), "the handler gets a credential");
    assertEquals(List.of("token"), steps);
  }

  private static void awaitUninterrupted(CountDownLatch latch) {
    try {
      latch.await();
    } catch (InterruptedException interrupted) {
      throw new AssertionError(interrupted);
    }
  }

  @Test
  void closedFleetEndsItsSubscriptionAfterItsHandlersWhoseCredentialsStayValid() throws InterruptedException {
    var finish = new CountDownLatch(1);
    start(
        cluster -> {
          clusters.put(cluster.name(), cluster);
          steps.add("begin");
          cluster.awaitEnd();
          steps.add("cleaning up with " + token(cluster));
          finish.await();
          steps.add("subscriptions ended: " + daemon.called(EndSubscriptionRequest.class).size());
        });
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> steps.size() == 1, "the handler begins");
    fleet.close();
    until(() -> steps.size() == 2, "the handler is notified of the end");
    assertTrue(running.isAlive(), "the fleet waits for its handler");
    finish.countDown();
    running.join();
    assertEquals(List.of("begin", "cleaning up with token-1", "subscriptions ended: 0"), steps);
    assertEquals("NOT_FOUND", token(clusters.get("a")), "the credential ends with the fleet");
    assertEquals(1, daemon.called(EndSubscriptionRequest.class).size());
  }

  @Test
  void fiveThousandHandlersShareOneConnectionForTheirCredentials() {
    var done = new AtomicInteger();
    start(
        cluster -> {
          if (token(cluster).startsWith("token-")) {
            done.incrementAndGet();
          }
          cluster.awaitEnd();
        });
    daemon.stream(1).send(true, IntStream.range(0, 5000).mapToObj(number -> engaged("c" + number)).toList());
    until(() -> done.get() == 5000, "each handler gets its credential");
    assertEquals(1, daemon.callers.size());
  }

  @Test
  void requestsToAnUnavailableIssuerAreRateLimitedOverAllHandlers() {
    var asked = new AtomicInteger();
    var answered = new AtomicInteger();
    daemon.issue =
        request -> {
          throw Status.UNAVAILABLE.asRuntimeException();
        };
    start(
        cluster -> {
          while (!cluster.hasEnded()) {
            (token(cluster).startsWith("token-") ? answered : asked).incrementAndGet();
            cluster.awaitEnd(Duration.ofMillis(20));
          }
        });
    long since = System.nanoTime();
    daemon.stream(1).send(true, IntStream.range(0, 300).mapToObj(number -> engaged("c" + number)).toList());
    until(() -> asked.get() > 500 && System.nanoTime() - since > 3_000_000_000L, "handlers request credentials for some seconds");
    int calls = daemon.called(IssueKubeconfigRequest.class).size();
    double seconds = (System.nanoTime() - since) / 1e9;
    // True on a machine of any speed: each failed request keeps one of the 16 slots for another second.
    assertTrue(calls <= 16 * (seconds + 1), calls + " calls in " + seconds + " s");
    daemon.issue = FakeDaemon.issuing(Duration.ofHours(1));
    until(() -> answered.get() > 0, "handlers get credentials when the issuer is available again");
  }

  @Test
  void credentialsAreRenewedBeforeExpiryWhileTheDaemonRestartsAndMissesHeartbeats() throws Exception {
    Set<String> found = ConcurrentHashMap.newKeySet();
    // Due while the daemon sends no heartbeats, and valid for as long as a slow machine needs.
    daemon.issue = FakeDaemon.issuing(Duration.ofSeconds(60), Duration.ofSeconds(5));
    start(
        WatchOptions.defaults().withHeartbeatInterval(Duration.ofSeconds(1)),
        (cluster, error) -> reported.add(error),
        cluster -> {
          clusters.put(cluster.name(), cluster);
          while (!cluster.hasEnded()) {
            found.add(token(cluster));
            cluster.awaitEnd(Duration.ofMillis(20));
          }
        });
    daemon.stream(1).snapshot(engaged("a"));
    until(() -> found.size() == 1, "the handler gets a credential");
    EngagedCluster before = clusters.get("a");
    daemon.kill();
    daemon.start();
    daemon.stream(2).snapshot(event(ClusterEvent.Type.TYPE_ENGAGED, cluster("a").setIncarnation("a-2")).build()); // without heartbeats after it
    daemon.stream(3).send(); // opened after three missed heartbeats
    until(() -> found.contains("token-2"), "the credential is renewed");
    assertSame(before, clusters.get("a"), "the handler keeps running");
    assertEquals(List.of(), found.stream().filter(each -> !each.startsWith("token-")).toList());
  }

  /** A credential that a handler received, and when. */
  private record Received(String cluster, String token, Instant at) {}

  @Test
  void handlerGetsNoErrorAndNoExpiredCredentialWhileTheDaemonIsStopped() throws Exception {
    // With a lifetime of 20 s, and issued 16 s ago: due for renewal in 1 s, and not used after 2 s.
    var expiry = new ConcurrentHashMap<String, Instant>();
    var number = new AtomicInteger();
    daemon.issue =
        request -> {
          var token = "token-" + number.incrementAndGet();
          var issuedAt = Instant.now().minusSeconds(16);
          expiry.put(token, issuedAt.plusSeconds(20));
          return FakeDaemon.kubeconfig(request.getCluster(), token, issuedAt, Duration.ofSeconds(20), Duration.ofSeconds(17));
        };
    var received = new CopyOnWriteArrayList<Received>();
    var isAsking = new AtomicBoolean();
    try (var relay = new Relay(daemon.port())) {
      client.close();
      client = FakeDaemon.client(relay.port());
      start(
          WatchOptions.defaults().withHeartbeatInterval(Duration.ofSeconds(1)),
          (cluster, error) -> reported.add(error),
          cluster -> {
            steps.add("begin " + cluster.name());
            while (!cluster.hasEnded()) {
              isAsking.set(true);
              String token = token(cluster);
              isAsking.set(false);
              received.add(new Received(cluster.name(), token, Instant.now()));
              cluster.awaitEnd(Duration.ofMillis(20));
            }
          });
      daemon.stream(1).snapshot(engaged("a"));
      until(() -> !received.isEmpty(), "the handler gets a credential");

      relay.stop();
      int connections = relay.accepted();
      until(() -> relay.accepted() > connections, "the watch has missed three heartbeats, and opens another connection");
      until(() -> expiry.values().stream().allMatch(Instant.now()::isAfter), "the last credential has expired");
      until(isAsking::get, "the handler waits for the next one");
      var before = Set.copyOf(expiry.keySet());
      relay.resume();

      var served = new AtomicInteger(1);
      until(
          () -> {
            if (served.get() < daemon.streams.size()) {
              daemon.streams.get(served.getAndIncrement()).sendIfOpen(engaged("b"));
            }
            return steps.contains("begin b");
          },
          "the stream is resumed");
      until(
          () -> received.stream().anyMatch(each -> each.cluster.equals("a") && !before.contains(each.token)),
          "the handler gets the next credential");
      assertEquals(List.of("begin a", "begin b"), steps);
      assertEquals(List.of(), received.stream().filter(each -> !expiry.containsKey(each.token)).toList());
      assertEquals(List.of(), received.stream().filter(each -> each.at.isAfter(expiry.get(each.token))).toList());
      assertEquals(List.of(), reported);
      stopFleet();
    }
  }
}
