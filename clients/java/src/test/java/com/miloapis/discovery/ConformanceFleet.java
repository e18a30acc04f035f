package com.miloapis.discovery;

import io.fabric8.kubernetes.client.KubernetesClientException;
import java.io.BufferedReader;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** The fleet with which the conformance kit tests this client. */
final class ConformanceFleet {
  private static final boolean LINGERS = System.getenv().containsKey("CONFORMANCE_LINGER");

  /** A running handler, with the commands for it. */
  private record Running(EngagedCluster cluster, LinkedBlockingQueue<String> commands) {}

  private static final Map<String, Queue<Running>> RUNNING = new ConcurrentHashMap<>();

  private ConformanceFleet() {}

  static void run(DiscoveryClient client, WatchOptions options, BufferedReader input) throws InterruptedException {
    try (var fleet = new Fleet(client, options)) {
      var executing = new Thread(() -> input.lines().forEach(line -> execute(fleet, line.split(" "))));
      executing.setDaemon(true);
      executing.start();
      fleet.run(ConformanceFleet::work);
    }
  }

  private static void work(EngagedCluster cluster) throws InterruptedException {
    String uid = cluster.current().getUid();
    var handler = new Running(cluster, new LinkedBlockingQueue<>());
    RUNNING.computeIfAbsent(cluster.name(), name -> new ConcurrentLinkedQueue<>()).add(handler);
    print("BEGIN", cluster, uid);
    String command = null;
    while (command == null && !cluster.hasEnded()) {
      command = handler.commands.poll(20, TimeUnit.MILLISECONDS);
    }
    if (command == null) {
      print("SIGNALED", cluster, uid);
      command = LINGERS ? handler.commands.take() : "finish";
    }
    RUNNING.get(cluster.name()).remove(handler);
    print("END", cluster, uid);
    if (command.equals("fail")) {
      throw new AssertionError("scripted");
    }
  }

  private static void execute(Fleet fleet, String[] words) {
    if (words[0].equals("stop")) {
      fleet.close();
      return;
    }
    Running handler = RUNNING.get(words[1]).peek();
    if (words[0].equals("request")) {
      ConformanceSubscriber.print("ANSWERED", "cluster", words[1], "code", request(handler.cluster));
      return;
    }
    if (!words[0].equals("credential")) {
      handler.commands.add(words[0]);
      return;
    }
    try {
      Access access = handler.cluster.credential().access();
      String user = access.actAs() == null ? "" : access.actAs().user();
      ConformanceSubscriber.print("CREDENTIAL", "cluster", words[1], "token", access.token(), "server", access.server(), "as", user);
    } catch (DiscoveryException error) {
      ConformanceSubscriber.print("CREDENTIAL", "cluster", words[1], "code", error.code().name());
    }
  }

  /** Send a request with an API client. Returns its error, or an empty string if it succeeded. */
  private static String request(EngagedCluster cluster) {
    try (var client = cluster.kubernetesClient()) {
      client.namespaces().list();
      return "";
    } catch (KubernetesClientException | DiscoveryException error) {
      return error.toString();
    }
  }

  private static void print(String event, EngagedCluster cluster, String uid) {
    ConformanceSubscriber.print(event, "cluster", cluster.name(), "uid", uid);
  }
}
