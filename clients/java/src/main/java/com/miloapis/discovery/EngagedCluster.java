package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import io.fabric8.kubernetes.client.Config;
import io.fabric8.kubernetes.client.ConfigBuilder;
import io.fabric8.kubernetes.client.KubernetesClient;
import io.fabric8.kubernetes.client.KubernetesClientBuilder;
import java.time.Duration;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/** One engagement of a cluster: the same object from ENGAGED to DISENGAGED. */
public final class EngagedCluster {
  private final Credential credential;
  private final CountDownLatch end = new CountDownLatch(1);
  private volatile Cluster current;

  EngagedCluster(DiscoveryClient client, Watch watch, Cluster current) {
    this.current = current;
    String name = current.getName();
    this.credential =
        new Credential(() -> client.issueKubeconfig(name, this.current.getIncarnation()), () -> watch.kubeconfig(name));
  }

  public String name() {
    return current.getName();
  }

  /** The cluster as of now, or as of its disengagement. */
  public Cluster current() {
    return current;
  }

  /** The credential of the cluster, renewed as long as it is engaged. */
  public Credential credential() {
    return credential;
  }

  /** Wait until the cluster is disengaged, or about to be: the handler has to end then. */
  public void awaitEnd() throws InterruptedException {
    end.await();
  }

  /** Whether the cluster is disengaged, or about to be. */
  public boolean hasEnded() {
    return end.getCount() == 0;
  }

  /** A client of the fabric8 library, whose token is renewed while it is used: create it once, and close it at the end. */
  public KubernetesClient kubernetesClient() {
    Access access = credential.access();
    Config config =
        new ConfigBuilder(Config.empty())
            .withMasterUrl(access.server())
            .withCaCertData(access.caData())
            .withClientCertData(access.certificateData())
            .withClientKeyData(access.keyData())
            .withOnlyHttpWatches(true) // WebSockets need more of proxies and servers
            .withOauthTokenProvider(access.token() == null ? null : () -> credential.access().token())
            .build();
    if (access.actAs() != null) {
      config.setImpersonateUsername(access.actAs().user());
      config.setImpersonateGroups(access.actAs().groups().toArray(String[]::new));
      config.setImpersonateExtras(access.actAs().extra());
    }
    return new KubernetesClientBuilder().withConfig(config).build();
  }

  /** Wait until the end, at most for a while. */
  void awaitEnd(Duration limit) {
    try {
      end.await(limit.toMillis(), TimeUnit.MILLISECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  void update(Cluster cluster) {
    current = cluster;
  }

  void end() {
    end.countDown();
  }
}
