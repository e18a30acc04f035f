package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;

/** What a session reports about a cluster. */
sealed interface News permits Event, News.Refreshed {
  /** The cluster as it is now; for DISENGAGED its last known state. */
  Cluster cluster();

  /** Only fields that the daemon assigns have changed, such as the incarnation: users are not notified. */
  record Refreshed(Cluster cluster) implements News {}
}
