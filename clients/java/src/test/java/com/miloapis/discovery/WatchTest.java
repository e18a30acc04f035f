package com.miloapis.discovery;

import static com.miloapis.discovery.FakeDaemon.engaged;
import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.RetryInfo;
import com.miloapis.discovery.v1.ClusterEvent;
import com.miloapis.discovery.v1.RenewOwnershipRequest;
import io.grpc.Metadata;
import io.grpc.Status;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class WatchTest {
  private static final ClusterEvent[] TEN = IntStream.range(0, 10).mapToObj(number -> engaged("c" + number)).toArray(ClusterEvent[]::new);

  @Test
  void handlerExceptionEndsRunAndIsNotReportedToOnDisconnect() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      for (RuntimeException thrown : List.of(new DiscoveryException("of the handler"), new IllegalStateException())) {
        daemon.streams.clear();
        var disconnected = new ArrayList<RuntimeException>();
        var watch = client.watch(WatchOptions.defaults().withOnDisconnect(disconnected::add));
        var events = new ArrayList<Event>();
        var serving = new Thread(() -> daemon.stream(1).snapshot(TEN));
        serving.start();
        var ended =
            assertThrows(
                RuntimeException.class,
                () ->
                    watch.run(
                        event -> {
                          events.add(event);
                          if (events.size() == 3) {
                            throw thrown;
                          }
                        }));
        serving.join();
        assertSame(thrown, ended);
        assertEquals(List.of(), disconnected);
        assertEquals(1, daemon.streams.size());
      }
    }
  }

  @Test
  void watchContinuesAfterAStatusWithMalformedOrInvalidDetails() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      var key = Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
      var endless = RetryInfo.newBuilder().setRetryDelay(com.google.protobuf.Duration.newBuilder().setSeconds(Long.MAX_VALUE));
      var negative = RetryInfo.newBuilder().setRetryDelay(com.google.protobuf.Duration.newBuilder().setNanos(-1));
      var details = new ArrayList<byte[]>();
      details.add(new byte[] {0x1a, -1, -1});
      for (var each : List.of(endless, negative)) {
        details.add(com.google.rpc.Status.newBuilder().setCode(14).addDetails(Any.pack(each.build())).build().toByteArray());
      }
      var watch = client.watch(WatchOptions.defaults());
      var events = new ArrayList<String>();
      var serving =
          new Thread(
              () -> {
                for (int number = 1; number <= details.size(); number++) {
                  var trailers = new Metadata();
                  trailers.put(key, details.get(number - 1));
                  daemon.stream(number).end(Status.UNAVAILABLE, trailers);
                }
                daemon.stream(details.size() + 1).snapshot(engaged("a"));
              });
      serving.setDaemon(true);
      serving.start();
      watch.run(
          event -> {
            events.add(event.toString());
            watch.close();
          });
      serving.join();
      assertEquals(List.of("ENGAGED a"), events);
    }
  }

  @Test
  void delayBeforeAReconnectGrowsWhileStreamsBreakAfterTheirSnapshot() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      var watch = client.watch(WatchOptions.defaults());
      var running = new Thread(() -> assertDoesNotThrow(() -> watch.run(event -> {})));
      running.start();
      for (int number = 1; number <= 4; number++) {
        daemon.stream(number).snapshot(engaged("a"));
        FakeDaemon.until(() -> watch.cluster("a") != null, "the snapshot is applied");
        daemon.stream(number).end(Status.UNAVAILABLE);
      }
      long since = System.nanoTime();
      daemon.stream(5);
      long waitedMs = (System.nanoTime() - since) / 1_000_000;
      watch.close();
      running.join();
      assertTrue(waitedMs > 700, "the fifth stream began " + waitedMs + " ms after the fourth"); // half of 200 ms, doubled three times
    }
  }

  @Test
  void watchThatRunsAgainRenewsTheOwnershipAgain() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      daemon.validFor = Duration.ofSeconds(1);
      var watch = client.watch(WatchOptions.defaults());
      var serving =
          new Thread(
              () -> {
                daemon.stream(1).snapshot(engaged("a"));
                daemon.stream(2).send();
                int before = daemon.called(RenewOwnershipRequest.class).size();
                FakeDaemon.until(() -> daemon.called(RenewOwnershipRequest.class).size() > before + 4, "the ownership is renewed");
                daemon.stream(2).send(engaged("b"));
              });
      serving.start();
      var interruption = new IllegalStateException();
      assertSame(interruption, assertThrows(IllegalStateException.class, () -> watch.run(event -> fail(interruption))));
      var events = new ArrayList<String>();
      watch.run(
          event -> {
            events.add(event.toString());
            watch.close();
          });
      serving.join();
      assertEquals(List.of("ENGAGED b"), events);
    }
  }

  @Test
  void renewalsOfTheOwnershipNameTheSubscriberWhileItHoldsClusters() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      daemon.validFor = Duration.ofSeconds(1);
      var watch = client.watch(WatchOptions.defaults().withSubscriber("operator"));
      var serving =
          new Thread(
              () -> {
                daemon.stream(1).snapshot(engaged("a"));
                daemon.stream(2).snapshot(engaged("a"));
              });
      serving.setDaemon(true);
      serving.start();
      var events = new ArrayList<String>();
      watch.run(
          event -> {
            events.add(event.toString());
            if (events.size() == 1) {
              untilNamed(daemon, "operator");
              daemon.validFor = Duration.ZERO; // as without a stream
            } else if (events.size() == 2) {
              untilNamed(daemon, "");
              daemon.validFor = Duration.ofSeconds(1);
            } else {
              watch.close();
            }
          });
      serving.join();
      assertEquals(List.of("ENGAGED a", "DISENGAGED a DISENGAGE_REASON_OWNERSHIP_LOST", "ENGAGED a"), events);
    }
  }

  private static void untilNamed(FakeDaemon daemon, String subscriber) {
    FakeDaemon.until(
        () -> {
          var renewals = daemon.called(RenewOwnershipRequest.class);
          return renewals.get(renewals.size() - 1).getSubscriber().equals(subscriber);
        },
        "renewals name the subscriber: '" + subscriber + "'");
  }

  private static void fail(RuntimeException error) {
    throw error;
  }

  @Test
  void watchRetriesWhileItsCredentialFilesAreUnusable(@TempDir Path directory) throws Exception {
    var empty = Files.createFile(directory.resolve("empty"));
    var files =
        List.of(
            new DiscoveryClient("127.0.0.1:1", new Credentials(empty, null, null, null)),
            new DiscoveryClient("unix:///run/unused.sock", new Credentials(null, null, null, empty)));
    for (var client : files) {
      try (client) {
        var watch = new AtomicReference<Watch>();
        var errors = new ArrayList<RuntimeException>();
        watch.set(
            client.watch(
                WatchOptions.defaults()
                    .withOnDisconnect(
                        error -> {
                          errors.add(error);
                          if (errors.size() == 2) {
                            watch.get().close();
                          }
                        })));
        watch.get().run(event -> {});
        assertEquals(2, errors.size());
      }
    }
  }

  @Test
  void watchContinuesAfterOnDisconnectThrows() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      var thrown = List.of(new IllegalStateException("of onDisconnect"), new StackOverflowError(), new AssertionError());
      var next = thrown.iterator();
      var watch = new AtomicReference<Watch>();
      var events = new ArrayList<String>();
      watch.set(
          client.watch(
              WatchOptions.defaults()
                  .withOnDisconnect(
                      error -> {
                        var problem = next.next();
                        if (problem instanceof Error fatal) {
                          throw fatal;
                        }
                        throw (RuntimeException) problem;
                      })));
      var serving =
          new Thread(
              () -> {
                for (int number = 1; number <= thrown.size(); number++) {
                  daemon.stream(number).end(Status.UNAVAILABLE);
                }
                daemon.stream(thrown.size() + 1).snapshot(engaged("a"));
              });
      serving.start();
      watch
          .get()
          .run(
              event -> {
                events.add(event.toString());
                watch.get().close();
              });
      serving.join();
      assertEquals(List.of("ENGAGED a"), events);
      assertFalse(next.hasNext(), "each is thrown");
    }
  }
}
