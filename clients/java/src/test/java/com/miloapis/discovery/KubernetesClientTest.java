package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.ByteString;
import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.Kubeconfig;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.fabric8.kubernetes.api.model.ConfigMapBuilder;
import io.fabric8.kubernetes.client.KubernetesClient;
import io.fabric8.kubernetes.client.KubernetesClientException;
import io.fabric8.kubernetes.client.Watcher;
import io.fabric8.kubernetes.client.WatcherException;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Tests of fabric8 API clients with redirects, changed endpoints and impersonation. */
class KubernetesClientTest {
  private ControlPlane first;
  private ControlPlane second;
  private volatile Session.Known known;
  private EngagedCluster cluster;

  @BeforeEach
  void start() throws IOException {
    first = new ControlPlane();
    second = new ControlPlane();
    serve(first, "{\"token\": \"one\"}");
    var credential = new Credential("a", () -> known, (incarnation, isRetry) -> new CompletableFuture<>(), CompletableFuture::new);
    cluster = new EngagedCluster(credential, Cluster.getDefaultInstance());
  }

  @AfterEach
  void stop() {
    first.server.stop(0);
    second.server.stop(0);
  }

  private void serve(ControlPlane server, String user) {
    serve(server, user, "");
  }

  /**
   * @param more further fields of the cluster
   */
  private void serve(ControlPlane server, String user, String more) {
    var file =
        """
        {"apiVersion": "v1", "kind": "Config", "current-context": "a",
         "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
         "clusters": [{"name": "a", "cluster": {"server": "%s"%s}}], "users": [{"name": "a", "user": %s}]}"""
            .formatted(server.url(), more, user);
    known = new Session.Known(Cluster.getDefaultInstance(), Kubeconfig.newBuilder().setKubeconfig(ByteString.copyFromUtf8(file)).build(), this);
  }

  @Test
  void redirectIsAnErrorAndIsNotFollowed() throws Exception {
    first.redirectTo = second.url();
    try (KubernetesClient client = cluster.kubernetesClient()) {
      var maps = client.configMaps().inNamespace("default");
      var created = new ConfigMapBuilder().withNewMetadata().withName("new").endMetadata().build();
      assertThrows(KubernetesClientException.class, maps::list);
      assertThrows(KubernetesClientException.class, () -> maps.resource(created).create());
      assertThrows(KubernetesClientException.class, () -> maps.withName("old").delete());
      try (var watch = maps.watch(new Ignoring())) {
        FakeDaemon.until(() -> first.requests.size() > 4, "the watch is retried");
      }
      first.redirectTo = first.url() + "/other";
      assertThrows(KubernetesClientException.class, maps::list);
    }
    assertEquals(List.of(), second.authorizations());
    assertEquals(List.of(), first.requests.stream().filter(request -> !request.getRequestURI().getPath().startsWith("/prefix/api/v1")).toList());
  }

  @Test
  void clientSendsTheNewTokenOnlyToTheNewEndpoint() {
    try (KubernetesClient client = cluster.kubernetesClient()) {
      client.namespaces().list();
      serve(second, "{\"token\": \"two\", \"as\": \"shop\", \"as-groups\": [\"a\", \"b\"], \"as-user-extra\": {\"example.com/why not\": [\"c\"]}}");
      client.namespaces().list();
      client.configMaps().inNamespace("default").list();
    }
    assertEquals(List.of("Bearer one"), first.authorizations());
    assertEquals(List.of("Bearer two", "Bearer two"), second.authorizations());
    var headers = second.requests.get(0).getRequestHeaders();
    assertEquals("/prefix/api/v1/namespaces", second.requests.get(0).getRequestURI().getPath());
    assertEquals(List.of("shop"), headers.get("Impersonate-User"));
    assertEquals(List.of("a", "b"), headers.get("Impersonate-Group"));
    assertEquals(List.of("c"), headers.get("Impersonate-Extra-example.com%2Fwhy%20not"));
  }

  @Test
  void urlThatOnlyBeginsLikeThatOfTheClusterGetsNoCredential() {
    try (KubernetesClient client = cluster.kubernetesClient()) {
      assertThrows(RuntimeException.class, () -> client.raw(first.url() + "-2/api"));
    }
    assertEquals(List.of(), first.authorizations());
  }

  @Test
  void impersonatedUserAndTokenOfARequestAreFromOneKubeconfig() {
    try (KubernetesClient client = cluster.kubernetesClient()) {
      for (String user : List.of("{\"token\": \"one\", \"as\": \"first\"}", "{\"token\": \"two\"}", "{\"token\": \"three\", \"as\": \"third\"}")) {
        serve(first, user);
        client.namespaces().list();
      }
    }
    assertEquals(List.of("Bearer one", "Bearer two", "Bearer three"), first.authorizations());
    assertEquals(List.of("first", "null", "third"), first.requests.stream().map(request -> String.valueOf(request.getRequestHeaders().getFirst("Impersonate-User"))).toList());
  }

  @Test
  void kubeconfigWithATlsServerNameIsRefused() {
    try (KubernetesClient client = cluster.kubernetesClient()) {
      serve(first, "{\"token\": \"two\"}", ", \"tls-server-name\": \"milo.test\"");
      assertThrows(RuntimeException.class, () -> client.namespaces().list());
      assertThrows(DiscoveryException.class, cluster::kubernetesClient);
    }
    assertEquals(List.of(), first.authorizations());
  }

  @Test
  void clientGetsNoCredentialAfterTheEngagement() {
    try (KubernetesClient client = cluster.kubernetesClient()) {
      client.namespaces().list();
      known = null;
      var error = assertThrows(RuntimeException.class, () -> client.namespaces().list());
      Throwable cause = error;
      while (!(cause instanceof DiscoveryException) && cause.getCause() != null) {
        cause = cause.getCause();
      }
      assertEquals("NOT_FOUND", ((DiscoveryException) cause).code().name());
    }
    assertEquals(1, first.requests.size());
  }

  /** A fake API server without objects, which records requests. */
  private static final class ControlPlane {
    final List<HttpExchange> requests = new CopyOnWriteArrayList<>();
    final HttpServer server;
    volatile String redirectTo;

    ControlPlane() throws IOException {
      server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
      server.createContext("/", this::answer);
      server.start();
    }

    String url() {
      return "http://127.0.0.1:" + server.getAddress().getPort() + "/prefix";
    }

    List<String> authorizations() {
      return requests.stream().map(request -> request.getRequestHeaders().getFirst("Authorization")).toList();
    }

    private void answer(HttpExchange exchange) throws IOException {
      requests.add(exchange);
      byte[] body = "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"metadata\": {}, \"items\": []}".getBytes();
      exchange.getResponseHeaders().set("Content-Type", "application/json");
      if (redirectTo != null) {
        exchange.getResponseHeaders().set("Location", redirectTo + exchange.getRequestURI());
      }
      exchange.sendResponseHeaders(redirectTo == null ? 200 : 307, body.length);
      exchange.getResponseBody().write(body);
      exchange.close();
    }
  }

  private static final class Ignoring implements Watcher<io.fabric8.kubernetes.api.model.ConfigMap> {
    @Override
    public void eventReceived(Action action, io.fabric8.kubernetes.api.model.ConfigMap map) {}

    @Override
    public void onClose(WatcherException cause) {}
  }
}
