package com.miloapis.discovery;

import static com.miloapis.discovery.FakeDaemon.engaged;
import static com.miloapis.discovery.FakeDaemon.until;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.miloapis.discovery.v1.IssueKubeconfigRequest;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class DiscoveryClientTest {
  private static StatusRuntimeException refusal(com.google.protobuf.Message detail) {
    return StatusProto.toStatusRuntimeException(com.google.rpc.Status.newBuilder().setCode(14).addDetails(Any.pack(detail)).build());
  }

  private static void assertRefused(DiscoveryClient client) {
    assertEquals(Status.Code.UNAVAILABLE, assertThrows(DiscoveryException.class, () -> client.issueKubeconfig("a", "")).code());
  }

  @Test
  void requestTooLongForTheDaemonIsInvalid() {
    var refused = Status.RESOURCE_EXHAUSTED.withDescription("SERVER: Received message larger than max (102704 vs. 98304)");
    var error = DiscoveryException.of(refused.asRuntimeException());
    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals(true, error.isFinal());
  }

  @Test
  void errorOfTheDaemonDoesNotReplaceTheConnection() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      var refusal = refusal(ErrorInfo.newBuilder().setReason("ISSUER_UNAVAILABLE").build());
      daemon.issue =
          request -> {
            throw refusal;
          };
      for (int call = 0; call < 5; call++) {
        assertRefused(client);
      }
      assertEquals(1, daemon.callers.size());
      daemon.issue =
          request -> {
            throw Status.UNAVAILABLE.asRuntimeException(); // as from a proxy that has lost the daemon
          };
      assertRefused(client);
      assertRefused(client);
      assertEquals(2, daemon.callers.size());
    }
  }

  @Test
  void callThatEndsUnavailableFailsNoOtherCall() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      var number = new AtomicInteger();
      var issuing = daemon.issue;
      daemon.issue =
          request -> {
            if (number.incrementAndGet() % 10 == 0) {
              throw Status.UNAVAILABLE.withDescription("scripted").asRuntimeException();
            }
            return issuing.apply(request);
          };
      Set<String> errors = ConcurrentHashMap.newKeySet();
      var callers =
          IntStream.range(0, 8)
              .mapToObj(
                  caller ->
                      CompletableFuture.runAsync(
                          () -> {
                            for (int call = 0; call < 500; call++) {
                              try {
                                client.issueKubeconfig("a", "");
                              } catch (DiscoveryException error) {
                                errors.add(error.getMessage());
                              }
                            }
                          },
                          work -> new Thread(work).start()))
              .toList();
      callers.forEach(CompletableFuture::join);
      assertEquals(Set.of("UNAVAILABLE: scripted"), errors);
    }
  }

  @Test
  void closeEndsWatchesAndCallsAndLaterOnesFail(@TempDir Path directory) throws Exception {
    for (var socket : new Path[] {null, directory.resolve("d.sock")}) {
      try (var daemon = new FakeDaemon(socket);
          var client = daemon.client()) {
        var engaged = new CountDownLatch(1);
        var never = new CountDownLatch(1);
        daemon.issue =
            request -> {
              try {
                never.await();
              } catch (InterruptedException closed) {
                // At the end of the test.
              }
              throw Status.INTERNAL.asRuntimeException();
            };
        var fleet = new Fleet(client, WatchOptions.defaults());
        var running = run(() -> fleet.run(cluster -> engaged.countDown()));
        daemon.stream(1).snapshot(engaged("a"));
        engaged.await();
        var call = run(() -> client.issueKubeconfig("a", ""));
        until(() -> daemon.called(IssueKubeconfigRequest.class).size() == 1, "the call is in flight");
        client.close();
        running.join(); // without an exception
        assertThrows(CompletionException.class, call::join);
        never.countDown();
        for (Runnable later : List.<Runnable>of(client::serverInfo, () -> client.issueKubeconfig("a", ""))) {
          assertEquals("the client was closed", assertThrows(DiscoveryException.class, later::run).getMessage());
        }
        assertThrows(DiscoveryException.class, () -> client.watch(WatchOptions.defaults()).run(event -> {}));
        assertEquals(1, daemon.streams.size());
      }
    }
  }

  @Test
  void closeEndsAWatchThatRetries(@TempDir Path directory) throws Exception {
    for (var address : List.of("127.0.0.1:1", "unix://" + directory.resolve("missing.sock"))) {
      var errors = new CopyOnWriteArrayList<RuntimeException>();
      var client = new DiscoveryClient(address, new Credentials(null, null, null, null));
      var watch = client.watch(WatchOptions.defaults().withOnDisconnect(errors::add));
      var running = run(() -> watch.run(event -> {}));
      until(() -> errors.size() == 2, "the watch retries");
      client.close();
      running.join();
    }
  }

  @Test
  void handlerMayCloseTheClient(@TempDir Path directory) throws Exception {
    for (var socket : new Path[] {null, directory.resolve("d.sock")}) {
      try (var daemon = new FakeDaemon(socket);
          var client = daemon.client()) {
        var running = run(() -> client.watch(WatchOptions.defaults()).run(event -> client.close()));
        daemon.stream(1).snapshot(engaged("a"));
        running.join();
      }
    }
  }

  @Test
  void requestedDelayIsLimited() {
    var requested = com.google.protobuf.Duration.newBuilder().setSeconds(Duration.ofDays(30).toSeconds());
    var error = DiscoveryException.of(refusal(RetryInfo.newBuilder().setRetryDelay(requested).build()));
    assertEquals(Duration.ofMinutes(5), error.retryAfter());
  }

  private interface Work {
    void run() throws InterruptedException;
  }

  private static CompletableFuture<Void> run(Work work) {
    return CompletableFuture.runAsync(
        () -> {
          try {
            work.run();
          } catch (InterruptedException interrupted) {
            throw new AssertionError(interrupted);
          }
        },
        each -> new Thread(each).start());
  }
}
