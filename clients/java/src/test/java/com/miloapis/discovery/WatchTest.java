package com.miloapis.discovery;

import static com.miloapis.discovery.FakeDaemon.engaged;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.miloapis.discovery.v1.ClusterEvent;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class WatchTest {
  private static final ClusterEvent[] TEN = IntStream.range(0, 10).mapToObj(number -> engaged("c" + number)).toArray(ClusterEvent[]::new);

  @Test
  void exceptionOfTheHandlerEndsTheRunWithoutADisconnect() throws Exception {
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
  void watchContinuesAfterOnDisconnectThrows() throws Exception {
    try (var daemon = new FakeDaemon();
        var client = daemon.client()) {
      var watch = new AtomicReference<Watch>();
      var events = new ArrayList<String>();
      watch.set(
          client.watch(
              WatchOptions.defaults()
                  .withOnDisconnect(
                      error -> {
                        throw new IllegalStateException("of onDisconnect");
                      })));
      var serving =
          new Thread(
              () -> {
                daemon.stream(1).end(Status.UNAVAILABLE);
                daemon.stream(2).snapshot(engaged("a"));
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
    }
  }
}
