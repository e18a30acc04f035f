package com.miloapis.discovery;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.miloapis.discovery.v1.Kubeconfig;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** The API server of a kubeconfig that the daemon issued, and the credential for it. Unset components are null. */
public record Access(
    String server,
    String caData,
    String tlsServerName,
    String token,
    String certificateData,
    String keyData,
    ActAs actAs) {

  /** The user that requests impersonate. */
  public record ActAs(String user, List<String> groups, Map<String, List<String>> extra) {}

  /**
   * Read a kubeconfig of the form that the daemon writes, JSON with a token or a client certificate. Everything else is refused:
   * a server that impersonates the daemon could send a program to run, a file to read or a proxy.
   */
  static Access of(Kubeconfig kubeconfig) {
    try {
      var file = JsonParser.parseString(kubeconfig.getKubeconfig().toStringUtf8());
      var top = object(file, Set.of("apiVersion", "kind", "current-context", "contexts", "clusters", "users"));
      only(top, "contexts", "context", Set.of("cluster", "user"));
      var cluster = only(top, "clusters", "cluster", Set.of("server", "certificate-authority-data", "tls-server-name"));
      var user = only(top, "users", "user", Set.of("token", "client-certificate-data", "client-key-data", "as", "as-groups", "as-user-extra"));
      var access =
          new Access(
              text(cluster, "server"),
              text(cluster, "certificate-authority-data"),
              text(cluster, "tls-server-name"),
              text(user, "token"),
              text(user, "client-certificate-data"),
              text(user, "client-key-data"),
              actAs(user));
      if (access.server == null || (access.token == null && (access.certificateData == null || access.keyData == null))) {
        throw new DiscoveryException("kubeconfig refused: it lacks a server or a credential");
      }
      return access;
    } catch (JsonParseException | IllegalStateException | UnsupportedOperationException | ClassCastException invalid) {
      throw new DiscoveryException("kubeconfig refused: it is not of the form that the daemon writes");
    }
  }

  /** Return whether a kubeconfig is of the form that the daemon writes, and log an error if not: an exception would end the watch. */
  static boolean isUsable(Kubeconfig kubeconfig) {
    try {
      of(kubeconfig);
      return true;
    } catch (DiscoveryException refused) {
      System.getLogger("com.miloapis.discovery")
          .log(System.Logger.Level.ERROR, "cluster {0}: {1}", kubeconfig.getCluster(), refused.getMessage());
      return false;
    }
  }

  private static JsonObject only(JsonObject top, String list, String inner, Set<String> fields) {
    var entries = top.getAsJsonArray(list);
    if (entries == null || entries.size() != 1) {
      throw new DiscoveryException("kubeconfig refused: `" + list + "` does not have exactly one entry");
    }
    return object(object(entries.get(0), Set.of("name", inner)).get(inner), fields);
  }

  private static JsonObject object(JsonElement element, Set<String> allowed) {
    if (element == null || !element.isJsonObject() || !allowed.containsAll(element.getAsJsonObject().keySet())) {
      throw new DiscoveryException("kubeconfig refused: a mapping is missing, or has fields that the daemon does not write");
    }
    return element.getAsJsonObject();
  }

  private static ActAs actAs(JsonObject user) {
    if (!user.has("as") && !user.has("as-groups") && !user.has("as-user-extra")) {
      return null;
    }
    var extra = new HashMap<String, List<String>>();
    if (user.has("as-user-extra")) {
      user.getAsJsonObject("as-user-extra").asMap().forEach((key, values) -> extra.put(key, texts(values)));
    }
    var name = text(user, "as");
    if (name == null) {
      throw new DiscoveryException("kubeconfig refused: it impersonates, but `as` is missing or empty");
    }
    return new ActAs(name, user.has("as-groups") ? texts(user.get("as-groups")) : List.of(), extra);
  }

  private static List<String> texts(JsonElement list) {
    return list.getAsJsonArray().asList().stream().map(JsonElement::getAsString).toList();
  }

  private static String text(JsonObject object, String name) {
    var value = object.get(name);
    return value == null || value.getAsString().isEmpty() ? null : value.getAsString();
  }

  @Override
  public String toString() { // without the secrets
    return "Access[" + server + "]";
  }
}
