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
  private volatile boolean isEngaged = true;

  EngagedCluster(Credential credential, Cluster current) {
    this.credential = credential;
    this.current = current;
  }

  public String name() {
    return current.getName();
  }

  /** The current state of the cluster, or its last state before it was disengaged. */
  public Cluster current() {
    return current;
  }

  /** The credential of the cluster. It is renewed while the cluster is engaged; afterwards, its access throws. */
  public Credential credential() {
    return credential;
  }

  /** Wait until the cluster is disengaged or draining, or the fleet stops. The handler has to return then. */
  public void awaitEnd() throws InterruptedException {
    end.await();
  }

  /** Wait as {@link #awaitEnd()} does, at most for {@code limit}. Returns whether the wait ended before the limit. */
  public boolean awaitEnd(Duration limit) throws InterruptedException {
    return end.await(limit.toMillis(), TimeUnit.MILLISECONDS);
  }

  /** Whether the cluster is disengaged or draining, or the fleet stops. */
  public boolean hasEnded() {
    return end.getCount() == 0;
  }

  /**
   * Create a client of the fabric8 library. Create it once, and close it at the end. Each request uses the server, the token and the
   * impersonated user of one credential. A redirect is an error, and so is a kubeconfig with {@code tls-server-name}: fabric8 would
   * verify the certificate for another name.
   */
  public KubernetesClient kubernetesClient() {
    Access access = credential.access();
    RenewedRequests.check(access);
    Config config =
        new ConfigBuilder(Config.empty())
            .withMasterUrl(access.server())
            .withCaCertData(access.caData())
            .withClientCertData(access.certificateData())
            .withClientKeyData(access.keyData())
            .withOnlyHttpWatches(true) // not all proxies and servers support WebSockets
            .build();
    var requests = new RenewedRequests(credential, config.getMasterUrl());
    return new KubernetesClientBuilder()
        .withConfig(config)
        // Replaces TokenRefreshInterceptor, which after a 401 would look for a token in the files of the environment.
        .withHttpClientBuilderConsumer(builder -> builder.addOrReplaceInterceptor(TokenRefreshInterceptor.NAME, requests))
        .build();
  }

  void update(Cluster cluster) {
    current = cluster;
  }

  /** Whether the cluster is engaged, draining or not. */
  boolean isEngaged() {
    return isEngaged;
  }

  void disengage() {
    isEngaged = false;
    end();
  }

  void end() {
    end.countDown();
  }
}
