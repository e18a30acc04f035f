package com.miloapis.discovery;

import com.google.gson.JsonObject;
import com.miloapis.discovery.v1.Kubeconfig;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** The subscriber with which the conformance kit tests this client. */
public final class ConformanceSubscriber {
  private static final Map<String, Credential> CREDENTIALS = new ConcurrentHashMap<>();

  public static void main(String[] arguments) throws Exception {
    var environment = System.getenv();
    var seconds = Double.parseDouble(environment.get("CONFORMANCE_HEARTBEAT_S"));
    String subscriber = environment.getOrDefault("CONFORMANCE_SUBSCRIBER", "");
    var options =
        WatchOptions.defaults()
            .withHeartbeatInterval(Duration.ofMillis(Math.round(seconds * 1000)))
            .withLabelSelector(environment.getOrDefault("CONFORMANCE_LABEL_SELECTOR", ""))
            .withSubscriber(subscriber);
    if (environment.containsKey("CONFORMANCE_KUBECONFIGS")) {
      options = options.withKubeconfigs();
    }
    var client = new DiscoveryClient();
    var commands = new BufferedReader(new InputStreamReader(System.in));
    if (environment.containsKey("CONFORMANCE_FLEET")) {
      ConformanceFleet.run(client, options, commands);
      System.exit(0);
    }
    var watch = client.watch(options);
    var following = new Thread(() -> follow(watch));
    following.start();
    for (String line = commands.readLine(); line != null && !line.equals("stop"); line = commands.readLine()) {
      String[] words = line.split(" ");
      try {
        execute(client, watch, words[0], words[1]);
      } catch (DiscoveryException error) {
        print(words[0].equals("credential") ? "CREDENTIAL" : "FAILED", "cluster", words[1], "code", error.code().name());
      }
    }
    watch.close();
    following.join();
    if (!subscriber.isEmpty()) {
      client.endSubscription(subscriber);
    }
    System.exit(0);
  }

  private static void follow(Watch watch) {
    try {
      watch.run(
          event -> {
            if (event.type() == Event.Type.ENGAGED) {
              CREDENTIALS.put(event.cluster().getName(), watch.credential(event));
            }
            print(event);
          });
    } catch (DiscoveryException error) {
      print("FATAL", "code", error.code().name());
    } catch (InterruptedException closed) {
      Thread.currentThread().interrupt();
    }
  }

  private static void execute(DiscoveryClient client, Watch watch, String verb, String name) {
    switch (verb) {
      case "release" -> watch.release(name);
      case "kubeconfig" -> print("ISSUED", "cluster", name, "kubeconfig", text(client.issueKubeconfig(name, "")));
      default -> {
        print("CREDENTIAL", "cluster", name, "token", CREDENTIALS.get(name).access().token());
      }
    }
  }

  private static void print(Event event) {
    var cluster = event.cluster();
    print(
        event.type().name(),
        "cluster", cluster.getName(),
        "uid", cluster.getUid(),
        "endpoint", cluster.getEndpoint(),
        "suspended", cluster.getSuspended() ? "yes" : "",
        "draining", cluster.hasDraining() ? reason(cluster.getDraining().getReason()) : "",
        "reason", reason(event.reason()),
        "kubeconfig", event.kubeconfig() == null ? "" : text(event.kubeconfig()));
  }

  private static String reason(Enum<?> reason) {
    return reason.name().replace("DISENGAGE_REASON_", "");
  }

  private static String text(Kubeconfig kubeconfig) {
    return kubeconfig.getKubeconfig().toStringUtf8();
  }

  static synchronized void print(String event, String... fields) {
    var line = new JsonObject();
    line.addProperty("event", event);
    for (int field = 0; field < fields.length; field += 2) {
      line.addProperty(fields[field], fields[field + 1]);
    }
    System.out.println(line);
  }
}
