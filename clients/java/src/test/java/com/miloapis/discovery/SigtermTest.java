package com.miloapis.discovery;

import static com.miloapis.discovery.FakeDaemon.engaged;
import static com.miloapis.discovery.FakeDaemon.until;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.miloapis.discovery.v1.EndSubscriptionRequest;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

/** Tests that send SIGTERM to a process. */
class SigtermTest {
  private static final Pattern STEP = Pattern.compile("^(begin|signal|end) ");
  private static final int TERMINATED = 128 + 15; // the JVM's exit status after SIGTERM
  private static final double EXITS_WITHIN_S = 10; // of a pod's grace period of 30 s

  @Test
  void operatorEndsItsHandlersAndItsSubscriptionAfterSigterm() throws Exception {
    try (var daemon = new FakeDaemon()) {
      var java = Path.of(System.getProperty("java.home"), "bin", "java").toString();
      var classes = System.getProperty("java.class.path");
      var builder =
          new ProcessBuilder(
              java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classes, TerminatedOperator.class.getName());
      builder.environment().keySet().removeIf(name -> name.startsWith("MILO_DISCOVERY"));
      builder.environment().put("MILO_DISCOVERY_ADDRESS", "127.0.0.1:" + daemon.port());
      var process = builder.redirectErrorStream(true).start();
      try {
        var printed = new CopyOnWriteArrayList<String>();
        var reading = new Thread(() -> process.inputReader().lines().filter(STEP.asPredicate()).forEach(printed::add));
        reading.setDaemon(true);
        reading.start();
        daemon.stream(1).snapshot(engaged("a"), engaged("b"));
        until(() -> printed.size() == 2, "the handlers begin");
        process.toHandle().destroy(); // sends SIGTERM, like Process.destroy, but does not close its output
        until(() -> printed.size() == 4 || !process.isAlive(), "the handlers are notified of the end");
        assertTrue(process.isAlive(), "the process waits for its handlers");
        assertEquals(0, daemon.called(EndSubscriptionRequest.class).size());
        long since = System.nanoTime();
        process.getOutputStream().write("finish\n".getBytes(StandardCharsets.UTF_8));
        process.getOutputStream().flush();
        until(() -> !process.isAlive(), "the process exits");
        double seconds = (System.nanoTime() - since) / 1e9;
        reading.join();
        System.out.printf("an operator in Java exited %.2f s after its last handler was allowed to end%n", seconds);
        assertEquals(TERMINATED, process.exitValue());
        assertEquals(Set.of("begin a", "begin b"), Set.copyOf(printed.subList(0, 2)));
        assertEquals(Set.of("signal a token", "signal b token"), tokens(printed.subList(2, 4)));
        assertEquals(Set.of("end a", "end b"), Set.copyOf(printed.subList(4, printed.size())));
        assertEquals(1, daemon.called(EndSubscriptionRequest.class).size());
        assertTrue(seconds < EXITS_WITHIN_S, seconds + " s");
      } finally {
        process.destroyForcibly();
      }
    }
  }

  private static Set<String> tokens(List<String> lines) {
    return lines.stream().map(line -> line.replaceAll("token-\\d+$", "token")).collect(Collectors.toSet());
  }
}
