package com.miloapis.discovery.example;

import com.miloapis.discovery.DiscoveryClient;
import com.miloapis.discovery.EngagedCluster;
import com.miloapis.discovery.Fleet;
import com.miloapis.discovery.WatchOptions;
import io.fabric8.kubernetes.api.model.ConfigMap;
import io.fabric8.kubernetes.api.model.ConfigMapBuilder;
import io.fabric8.kubernetes.api.model.Namespace;
import io.fabric8.kubernetes.api.model.OwnerReference;
import io.fabric8.kubernetes.client.KubernetesClient;
import io.fabric8.kubernetes.client.dsl.NonDeletingOperation;
import io.javaoperatorsdk.operator.Operator;
import io.javaoperatorsdk.operator.api.config.informer.InformerEventSourceConfiguration;
import io.javaoperatorsdk.operator.api.reconciler.Context;
import io.javaoperatorsdk.operator.api.reconciler.ControllerConfiguration;
import io.javaoperatorsdk.operator.api.reconciler.EventSourceContext;
import io.javaoperatorsdk.operator.api.reconciler.Reconciler;
import io.javaoperatorsdk.operator.api.reconciler.UpdateControl;
import io.javaoperatorsdk.operator.processing.event.ResourceID;
import io.javaoperatorsdk.operator.processing.event.source.EventSource;
import io.javaoperatorsdk.operator.processing.event.source.informer.InformerEventSource;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Maintains one ConfigMap in the namespace "default" of each project, with one {@link Operator} of the Java Operator SDK for each
 * engaged cluster: an Operator has one client, and can be stopped without effect on the others.
 */
public final class GreetingOperator {
  private static final String NAME = "greeting";
  private static final String NAMESPACE = "default";

  public static void main(String[] arguments) throws InterruptedException {
    var options =
        WatchOptions.defaults()
            .withKubeconfigs()
            .withHeartbeatInterval(Duration.ofSeconds(10))
            .withOnDisconnect(error -> System.err.println("stream broken, reconnecting: " + error.getMessage()));
    try (var client = new DiscoveryClient();
        var fleet = new Fleet(client, options)) {
      var running = Thread.currentThread();
      Runtime.getRuntime().addShutdownHook(new Thread(() -> end(fleet, running)));
      fleet.run(GreetingOperator::operate);
    }
  }

  /** Closes the fleet and waits for its handlers; otherwise the JVM would exit on SIGTERM while they run. */
  private static void end(Fleet fleet, Thread running) {
    fleet.close();
    try {
      running.join();
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  private static void operate(EngagedCluster cluster) throws InterruptedException {
    System.out.println("working in " + cluster.name());
    var failure = new AtomicReference<Throwable>();
    try (KubernetesClient client = cluster.kubernetesClient()) {
      var operator =
          new Operator(
              override ->
                  override
                      .withKubernetesClient(client)
                      .withCloseClientOnStop(false)
                      // By default, an informer that stops with an error ends the process, and with it all clusters.
                      .withInformerStoppedHandler((informer, error) -> failure.set(error)));
      operator.register(new Greeter(cluster));
      operator.start();
      try {
        while (!cluster.awaitEnd(Duration.ofSeconds(1))) {
          if (failure.get() != null) {
            throw new IllegalStateException("an informer stopped", failure.get()); // the fleet calls the handler again
          }
        }
      } finally {
        operator.stop();
      }
    } finally {
      System.out.println("stopped working in " + cluster.name());
    }
  }

  /** Reconciles the ConfigMap: called for each namespace, and for changes of it and of the ConfigMap. */
  @ControllerConfiguration(name = "greeter")
  private record Greeter(EngagedCluster cluster) implements Reconciler<Namespace> {
    @Override
    public List<EventSource<?, Namespace>> prepareEventSources(EventSourceContext<Namespace> context) {
      var greetings =
          InformerEventSourceConfiguration.from(ConfigMap.class, Namespace.class)
              .withSecondaryToPrimaryMapper(
                  (ConfigMap found) -> found.getMetadata().getName().equals(NAME) ? Set.of(new ResourceID(NAMESPACE)) : Set.of())
              .build();
      return List.of(new InformerEventSource<>(greetings, context));
    }

    @Override
    public UpdateControl<Namespace> reconcile(Namespace namespace, Context<Namespace> context) {
      if (namespace.getMetadata().getName().equals(NAMESPACE)) {
        var greetings = context.getClient().configMaps().inNamespace(NAMESPACE);
        var wanted = Map.of("greeting", "Hello, " + cluster.name());
        var found = greetings.withName(NAME).get();
        if (found == null || !wanted.equals(found.getData())) {
          var greeting = new ConfigMapBuilder().withNewMetadata().withName(NAME).endMetadata().withData(wanted).build();
          greetings.resource(greeting).createOr(NonDeletingOperation::update);
          System.out.println("greeted " + cluster.name());
        }
      }
      return UpdateControl.noUpdate();
    }
  }
}
