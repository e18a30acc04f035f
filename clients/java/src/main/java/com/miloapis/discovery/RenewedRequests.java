package com.miloapis.discovery;

import io.fabric8.kubernetes.client.http.BasicBuilder;
import io.fabric8.kubernetes.client.http.HttpRequest;
import io.fabric8.kubernetes.client.http.Interceptor;
import java.net.URI;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.List;

/**
 * Sets the server, the token and the impersonated user of each request of an API client from the same credential, so that they are
 * never combined from different ones.
 */
final class RenewedRequests implements Interceptor {
  private final Credential credential;
  private final String madeFor;

  /**
   * @param madeFor the URL with which all URLs of the client begin
   */
  RenewedRequests(Credential credential, String madeFor) {
    this.credential = credential;
    this.madeFor = withoutSlash(madeFor);
  }

  @Override
  public void before(BasicBuilder builder, HttpRequest request, RequestTags tags) {
    Access access = credential.access();
    check(access);
    String url = request.uri().toString();
    // The host example.com:4433 and the path /alpha-2 begin with other hosts and paths, whose credentials they must not get.
    if (!url.equals(madeFor) && !url.startsWith(madeFor + "/") && !url.startsWith(madeFor + "?")) {
      throw new DiscoveryException("the request URL does not belong to a server of the cluster: host " + request.uri().getHost());
    }
    builder.uri(URI.create(withoutSlash(access.server()) + url.substring(madeFor.length())));
    if (access.token() != null) {
      builder.setHeader("Authorization", "Bearer " + access.token());
    }
    if (access.actAs() != null) {
      builder.setHeader("Impersonate-User", access.actAs().user());
      set(builder, "Impersonate-Group", access.actAs().groups());
      access.actAs().extra().forEach((key, values) -> set(builder, "Impersonate-Extra-" + encoded(key), values));
    }
  }

  /** Throw unless fabric8 can use the credential as it is meant. */
  static void check(Access access) {
    if (access.tlsServerName() != null) {
      throw new DiscoveryException(
          "kubeconfig of " + access.server() + " refused: fabric8 cannot verify a certificate for its `tls-server-name`; use a client that can");
    }
  }

  private static void set(BasicBuilder builder, String name, List<String> values) {
    values.stream().limit(1).forEach(value -> builder.setHeader(name, value));
    values.stream().skip(1).forEach(value -> builder.header(name, value));
  }

  private static String encoded(String key) {
    return URLEncoder.encode(key, StandardCharsets.UTF_8).replace("+", "%20");
  }

  private static String withoutSlash(String url) {
    return url.endsWith("/") ? url.substring(0, url.length() - 1) : url;
  }
}
