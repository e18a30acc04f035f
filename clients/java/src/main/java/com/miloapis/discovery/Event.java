package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.DisengageReason;
import com.miloapis.discovery.v1.Kubeconfig;

/**
 * A change to one cluster. There is ENGAGED first, then any number of others, then DISENGAGED.
 *
 * @param cluster complete in every type; for DISENGAGED as last known
 * @param reason set for DISENGAGED. UNSPECIFIED means that the cluster was missing when the daemon was back: do not treat it as
 *     DELETED
 * @param message human-readable
 * @param kubeconfig with KUBECONFIG, and with ENGAGED if one is available; otherwise null
 * @param engagement the same from ENGAGED to DISENGAGED, and not equal to that of any other engagement, also of the same cluster
 */
public record Event(
    Type type, Cluster cluster, DisengageReason reason, String message, Kubeconfig kubeconfig, Object engagement) {
  /** What happened. */
  public enum Type {
    ENGAGED,
    UPDATED,
    DISENGAGED,
    KUBECONFIG
  }

  static Event of(Type type, Session.Known known) {
    boolean hasKubeconfig = type == Type.ENGAGED || type == Type.KUBECONFIG;
    var none = DisengageReason.DISENGAGE_REASON_UNSPECIFIED;
    return new Event(type, known.cluster(), none, "", hasKubeconfig ? known.kubeconfig() : null, known.engagement());
  }

  static Event disengaged(Session.Known ended, DisengageReason reason, String message) {
    // A reason that a newer daemon adds is an unknown one.
    boolean isKnown = reason != DisengageReason.UNRECOGNIZED;
    var understood = isKnown ? reason : DisengageReason.DISENGAGE_REASON_UNSPECIFIED;
    return new Event(Type.DISENGAGED, ended.cluster(), understood, message, null, ended.engagement());
  }

  @Override
  public String toString() { // without the kubeconfig, which is secret
    return type + " " + cluster.getName() + (type == Type.DISENGAGED ? " " + reason : "");
  }
}
