package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.ClusterEvent;
import com.miloapis.discovery.v1.DisengageReason;
import com.miloapis.discovery.v1.Kubeconfig;
import com.miloapis.discovery.v1.WatchClustersResponse;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;

/**
 * Turns batches into news, without I/O. It outlives connections and daemons, and reports one ENGAGED and one DISENGAGED for each
 * engagement.
 *
 * <p>A snapshot takes effect when it is complete, as its differences from the view. A cluster with the same name and UID is the same
 * cluster, whatever its incarnation. But if a cluster was draining, and is not any more, it was disengaged and engaged
 * again. A batch is applied completely or not at all; the resume revision is that of the last applied batch.
 */
final class Session {
  /** A longer revision is not resumed from: a daemon that refuses long requests would refuse it again and again. */
  private static final int LONGEST_REVISION = 16 * 1024;

  static final String MISSING = "it is missing from the daemon's latest snapshot";
  static final String NOT_RENEWED = "the daemon did not confirm in time that it still owns the cluster";

  /** An engaged cluster, with its kubeconfig if there is one. */
  record Known(Cluster cluster, Kubeconfig kubeconfig, Object engagement) {}

  private enum Phase {
    CLOSED,
    OPENED,
    AWAITING_SNAPSHOT,
    RECEIVING_SNAPSHOT,
    LIVE
  }

  private final Predicate<Kubeconfig> isUsable;
  private Map<String, Known> view = new LinkedHashMap<>();
  private Map<String, Known> snapshot = new LinkedHashMap<>();
  private Phase phase = Phase.CLOSED;
  private String last = "";
  private String revision = "";

  Session(Predicate<Kubeconfig> isUsable) {
    this.isUsable = isUsable;
  }

  /** Return the engaged cluster of this name; null if there is none. */
  synchronized Known get(String name) {
    return view.get(name);
  }

  synchronized boolean isEmpty() {
    return view.isEmpty();
  }

  synchronized List<Known> view() {
    return List.copyOf(view.values());
  }

  String revision() {
    return revision;
  }

  /** Begin another stream, dropping an incomplete snapshot, and return the revision to resume from. */
  String open() {
    phase = Phase.OPENED;
    if (revision.length() > LONGEST_REVISION) {
      revision = "";
    }
    last = revision;
    return revision;
  }

  /** Apply a batch. If it contradicts the view, or does not continue the previous batch, throws and applies none of it. */
  synchronized List<News> receive(WatchClustersResponse batch) {
    Phase before = phase;
    phase = Phase.CLOSED; // remains closed if the batch is invalid
    if (batch.getReset()) {
      snapshot = new LinkedHashMap<>(); // the stream starts over, so no earlier batch can be missing
      return receiveSnapshot(batch);
    }
    switch (before) {
      case CLOSED:
        throw new StreamBrokenException("a batch arrived on a stream that is not open");
      case OPENED:
        if (!batch.getSynced()) {
          last = ""; // the daemon does not resume
          return awaitSnapshot(batch);
        }
        if (last.isEmpty()) {
          throw new StreamBrokenException("a new stream began without a snapshot");
        }
        return apply(batch);
      case AWAITING_SNAPSHOT:
        return awaitSnapshot(batch);
      case RECEIVING_SNAPSHOT:
        requireNext(batch);
        return receiveSnapshot(batch);
      default:
        return apply(batch);
    }
  }

  /** Disengage all clusters: another daemon may have engaged them. The next stream begins with a snapshot. */
  synchronized List<Event> loseOwnership() {
    var lost = new ArrayList<Event>();
    for (Known known : view.values()) {
      lost.add(Event.disengaged(known, DisengageReason.DISENGAGE_REASON_OWNERSHIP_LOST, NOT_RENEWED));
    }
    drop();
    return lost;
  }

  /** Forget all clusters. The next stream begins with a snapshot. */
  synchronized void drop() {
    view = new LinkedHashMap<>();
    phase = Phase.CLOSED;
    revision = "";
  }

  private List<News> awaitSnapshot(WatchClustersResponse batch) {
    requireNext(batch);
    if (batch.getEventsCount() > 0 || batch.getSynced()) {
      throw contradiction("events or `synced` arrived before the snapshot");
    }
    return proceed(Phase.AWAITING_SNAPSHOT, batch, List.of());
  }

  private List<News> receiveSnapshot(WatchClustersResponse batch) {
    for (ClusterEvent event : batch.getEventsList()) {
      String name = event.getCluster().getName();
      switch (event.getType()) {
        case TYPE_ENGAGED, TYPE_UPDATED, TYPE_KUBECONFIG -> snapshot.put(name, known(event, snapshot.get(name)));
        case TYPE_DISENGAGED -> snapshot.remove(name);
        default -> {} // an event type of a newer daemon
      }
    }
    if (!batch.getSynced()) {
      return proceed(Phase.RECEIVING_SNAPSHOT, batch, List.of());
    }
    view.forEach(
        (name, before) -> {
          Known now = snapshot.get(name);
          if (now != null && endOf(before.cluster(), now.cluster()) == null) {
            snapshot.put(name, new Known(now.cluster(), now.kubeconfig(), before.engagement()));
          } else if (now == null && batch.getPendingSourcesList().contains(before.cluster().getSource())) {
            snapshot.put(name, before);
          }
        });
    List<News> news = differences();
    view = snapshot;
    snapshot = new LinkedHashMap<>();
    revision = batch.getRevision();
    return proceed(Phase.LIVE, batch, news);
  }

  private List<News> differences() {
    var news = new ArrayList<News>();
    view.forEach(
        (name, known) -> {
          if (!snapshot.containsKey(name)) {
            news.add(Event.disengaged(known, DisengageReason.DISENGAGE_REASON_UNSPECIFIED, MISSING));
          }
        });
    snapshot.forEach(
        (name, now) -> {
          Known before = view.get(name);
          DisengageReason end = before == null ? null : endOf(before.cluster(), now.cluster());
          if (before == null) {
            news.add(Event.of(Event.Type.ENGAGED, now));
          } else if (end != null) {
            news.add(Event.disengaged(before, end, ""));
            news.add(Event.of(Event.Type.ENGAGED, now));
          } else {
            if (!content(before.cluster()).equals(content(now.cluster()))) {
              news.add(Event.of(Event.Type.UPDATED, now));
            } else if (!before.cluster().equals(now.cluster())) {
              news.add(new News.Refreshed(now.cluster()));
            }
            if (now.kubeconfig() != null && !now.kubeconfig().equals(before.kubeconfig())) {
              news.add(Event.of(Event.Type.KUBECONFIG, now));
            }
          }
        });
    return news;
  }

  private List<News> apply(WatchClustersResponse batch) {
    requireNext(batch);
    if (!batch.getSynced()) {
      throw contradiction("`synced` became false without a reset");
    }
    var changed = new HashMap<String, Known>(); // null: disengaged
    var news = new ArrayList<News>();
    for (ClusterEvent event : batch.getEventsList()) {
      var type = event.getType();
      if (type == ClusterEvent.Type.TYPE_UNSPECIFIED || type == ClusterEvent.Type.UNRECOGNIZED) {
        continue; // an event type of a newer daemon
      }
      String name = event.getCluster().getName();
      Known before = changed.containsKey(name) ? changed.get(name) : view.get(name);
      if ((before == null) != (type == ClusterEvent.Type.TYPE_ENGAGED)) {
        throw contradiction(type + " for cluster " + name + ", which is " + (before == null ? "not " : "") + "engaged");
      }
      Known after = known(event, before);
      changed.put(name, type == ClusterEvent.Type.TYPE_DISENGAGED ? null : after);
      switch (type) {
        case TYPE_ENGAGED -> news.add(Event.of(Event.Type.ENGAGED, after));
        case TYPE_UPDATED -> news.add(Event.of(Event.Type.UPDATED, after));
        case TYPE_DISENGAGED -> news.add(Event.disengaged(after, event.getReason(), event.getMessage()));
        default -> {
          if (after.kubeconfig() != before.kubeconfig()) { // isUsable accepted it
            news.add(Event.of(Event.Type.KUBECONFIG, after));
          }
        }
      }
    }
    changed.forEach(
        (name, known) -> {
          if (known == null) {
            view.remove(name);
          } else {
            view.put(name, known);
          }
        });
    revision = batch.getRevision();
    return proceed(Phase.LIVE, batch, news);
  }

  private List<News> proceed(Phase next, WatchClustersResponse batch, List<News> news) {
    phase = next;
    last = batch.getRevision();
    return news;
  }

  private Known known(ClusterEvent event, Known before) {
    Object engagement = before == null ? new Object() : before.engagement();
    if (event.hasKubeconfig() && isUsable.test(event.getKubeconfig())) {
      return new Known(event.getCluster(), event.getKubeconfig(), engagement);
    }
    // The kubeconfig of a former endpoint would send its credential there, where another project may be.
    boolean isForIt = before != null && before.cluster().getEndpoint().equals(event.getCluster().getEndpoint());
    return new Known(event.getCluster(), isForIt ? before.kubeconfig() : null, engagement);
  }

  private void requireNext(WatchClustersResponse batch) {
    if (!batch.getPreviousRevision().equals(last)) {
      throw new StreamBrokenException(
          "a batch is missing: expected one after '" + last + "', got one after '" + batch.getPreviousRevision() + "'");
    }
  }

  /** Drop the resume revision, since only a snapshot can resolve the contradiction, and return the exception. */
  private StreamBrokenException contradiction(String detail) {
    revision = "";
    return new StreamBrokenException(detail);
  }

  /** Return why the former engagement has ended, if the cluster in a snapshot is a new engagement; otherwise null. */
  private static DisengageReason endOf(Cluster before, Cluster now) {
    if (!before.getUid().equals(now.getUid())) {
      return DisengageReason.DISENGAGE_REASON_REPLACED;
    }
    return before.hasDraining() && !now.hasDraining() ? before.getDraining().getReason() : null;
  }

  /** Return the cluster without the fields that the daemon assigns. */
  private static Cluster content(Cluster cluster) {
    var content = cluster.toBuilder().clearEngagedAt().clearIncarnation().clearSourceResourceVersion();
    if (cluster.hasConnectivity()) {
      content.getConnectivityBuilder().clearSince();
    }
    return content.build();
  }
}
