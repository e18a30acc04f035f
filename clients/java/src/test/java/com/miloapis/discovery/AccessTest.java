package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.ByteString;
import com.miloapis.discovery.v1.Kubeconfig;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class AccessTest {
  private static Kubeconfig kubeconfig(String cluster, String user) {
    String file =
        """
        {"apiVersion": "v1", "kind": "Config", "current-context": "a",
         "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
         "clusters": [{"name": "a", "cluster": %s}], "users": [{"name": "a", "user": %s}]}"""
            .formatted(cluster, user);
    return Kubeconfig.newBuilder().setCluster("a").setKubeconfig(ByteString.copyFromUtf8(file)).build();
  }

  @Test
  void kubeconfigWithTokenIsRead() {
    var access = Access.of(kubeconfig("{\"server\": \"https://milo.test\"}", "{\"token\": \"secret\"}"));
    assertEquals("https://milo.test", access.server());
    assertEquals("secret", access.token());
    assertFalse(access.toString().contains("secret"));
  }

  @Test
  void impersonatedUserIsRead() {
    var user =
        """
        {"token": "secret", "as": "shop", "as-groups": ["a", "b"], "as-user-extra": {"example.com/why": ["c"]}}""";
    var acting = Access.of(kubeconfig("{\"server\": \"https://milo.test\"}", user)).actAs();
    assertEquals(new Access.ActAs("shop", List.of("a", "b"), Map.of("example.com/why", List.of("c"))), acting);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{\"token\": \"secret\", \"as-groups\": [\"a\"]}",
        "{\"token\": \"secret\", \"as\": \"a\", \"as-groups\": \"b\"}",
        "{\"exec\": {\"command\": \"/bin/sh\"}}",
        "{\"tokenFile\": \"/etc/passwd\"}",
        "{\"token\": [\"secret\"], \"more\": 1}",
        "{}",
        "[]",
      })
  void userThatTheDaemonWouldNotWriteIsRefused(String user) {
    var error = assertThrows(DiscoveryException.class, () -> Access.of(kubeconfig("{\"server\": \"https://milo.test\"}", user)));
    assertFalse(error.getMessage().contains("secret"));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{}",
        "{\"server\": \"https://milo.test\", \"proxy-url\": \"http://other\"}",
        "{\"server\": \"https://milo.test\", \"insecure-skip-tls-verify\": true}",
      })
  void clusterThatTheDaemonWouldNotWriteIsRefused(String cluster) {
    assertThrows(DiscoveryException.class, () -> Access.of(kubeconfig(cluster, "{\"token\": \"secret\"}")));
  }
}
