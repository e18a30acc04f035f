package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import io.fabric8.kubernetes.client.Config;
import io.fabric8.kubernetes.client.ConfigBuilder;
import io.fabric8.kubernetes.client.KubernetesClient;
import io.fabric8.kubernetes.client.KubernetesClientBuilder;
import io.fabric8.kubernetes.client.utils.TokenRefreshInterceptor;
import java.time.Duration;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/** One engagement of a cluster: the same object from ENGAGED to DISENGAGED. */
public final class EngagedCluster {
  private final Credential credential;
  private final CountDownLatch end = new CountDownLatch(1);
  private volatile Cluster current;

  EngagedCluster(Credential credential, Cluster current) {
    this.credential = credential;
    this.current = current;
  }

  public String name() {
    return current.getName();
  }

  /** The cluster as of now, or as of its disengagement. */
  public Cluster current() {
    return current;
  }

  /** The credential of the cluster, renewed as long as it is engaged, and refused afterwards. */
  public Credential credential() {
    return credential;
  }

  /** Wait until the cluster is disengaged, or about to be: the handler has to end then. */
  public void awaitEnd() throws InterruptedException {
    end.await();
  }

  /** Wait until the cluster is disengaged, or about to be, at most for a while. Returns whether it is. */
  public boolean awaitEnd(Duration limit) throws InterruptedException {
    return end.await(limit.toMillis(), TimeUnit.MILLISECONDS);
  }

  /** Whether the cluster is disengaged, or about to be. */
  public boolean hasEnded() {
    return end.getCount() == 0;
  }

  /**
   * A client of the fabric8 library: create it once, and close it at the end. The server, the token and the user to act as are read
   * together for each request. A redirect is an error.
   */
  public KubernetesClient kubernetesClient() {
    Access access = credential.access();
    Config config =
        new ConfigBuilder(Config.empty())
            .withMasterUrl(access.server())
            .withCaCertData(access.caData())
            .withClientCertData(access.certificateData())
            .withClientKeyData(access.keyData())
            .withOnlyHttpWatches(true) // WebSockets need more of proxies and servers
            .build();
    var requests = new RenewedRequests(credential, config.getMasterUrl());
    return new KubernetesClientBuilder()
        .withConfig(config)
        // In its place: it would look for a token in the files of the environment after a 401.
        .withHttpClientBuilderConsumer(builder -> builder.addOrReplaceInterceptor(TokenRefreshInterceptor.NAME, requests))
        .build();
  }

  void update(Cluster cluster) {
    current = cluster;
  }

  void end() {
    end.countDown();
  }
}
