package com.miloapis.discovery;

import com.miloapis.discovery.v1.ClusterFilter;
import java.time.Duration;
import java.util.function.Consumer;

/**
 * Options of a watch.
 *
 * @param filter selects the clusters
 * @param includeKubeconfigs deliver a kubeconfig with each ENGAGED, if available, and a new one in a KUBECONFIG event before it expires
 * @param heartbeatInterval interval of heartbeats on an idle stream; after three missed heartbeats, the watch reconnects
 * @param subscriber if not empty, planned disengagements wait for a release under this name, which no other watch of the caller may use
 * @param onDisconnect called with the reason when a stream breaks or cannot be opened, by default to log it; clusters
 *     stay engaged until the ownership of a sharded daemon expires
 */
public record WatchOptions(
    ClusterFilter filter,
    boolean includeKubeconfigs,
    Duration heartbeatInterval,
    String subscriber,
    Consumer<RuntimeException> onDisconnect) {

  /** Options for all clusters, without kubeconfigs and releases. */
  public static WatchOptions defaults() {
    return new WatchOptions(ClusterFilter.getDefaultInstance(), false, Duration.ofSeconds(30), "", WatchOptions::log);
  }

  private static void log(RuntimeException error) {
    String reason = error.getMessage();
    for (Throwable cause = error.getCause(); cause != null; cause = cause.getCause()) {
      reason = cause.getMessage() == null || reason.contains(cause.getMessage()) ? reason : reason + ": " + cause.getMessage();
    }
    System.getLogger("com.miloapis.discovery").log(System.Logger.Level.WARNING, "no stream from the daemon; retrying: " + reason);
  }

  public WatchOptions withLabelSelector(String selector) {
    var selected = filter.toBuilder().setLabelSelector(selector).build();
    return new WatchOptions(selected, includeKubeconfigs, heartbeatInterval, subscriber, onDisconnect);
  }

  public WatchOptions withKubeconfigs() {
    return new WatchOptions(filter, true, heartbeatInterval, subscriber, onDisconnect);
  }

  public WatchOptions withHeartbeatInterval(Duration interval) {
    return new WatchOptions(filter, includeKubeconfigs, interval, subscriber, onDisconnect);
  }

  public WatchOptions withSubscriber(String name) {
    return new WatchOptions(filter, includeKubeconfigs, heartbeatInterval, name, onDisconnect);
  }

  public WatchOptions withOnDisconnect(Consumer<RuntimeException> handler) {
    return new WatchOptions(filter, includeKubeconfigs, heartbeatInterval, subscriber, handler);
  }

  /** The heartbeat interval, clamped to the daemon's limits. */
  Duration heartbeat() {
    var atLeast = heartbeatInterval.compareTo(Duration.ofSeconds(1)) < 0 ? Duration.ofSeconds(1) : heartbeatInterval;
    return atLeast.compareTo(Duration.ofHours(1)) > 0 ? Duration.ofHours(1) : atLeast;
  }
}
