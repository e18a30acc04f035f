package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.DisengageReason;
import com.miloapis.discovery.v1.Kubeconfig;

/**
 * A change to one cluster. Each engagement begins with ENGAGED and ends with DISENGAGED.
 *
 * @param cluster complete in every type; for DISENGAGED the last known state
 * @param reason set for DISENGAGED. UNSPECIFIED means that a snapshot of the daemon lacks the cluster, or that this
 *     client does not know the reason: do not treat it as DELETED
 * @param message human-readable
 * @param kubeconfig with KUBECONFIG, and with ENGAGED if one is available; otherwise null
 * @param engagement identifies the engagement: the same object from ENGAGED to DISENGAGED, and never equal to another engagement's
 */
public record Event(
    Type type, Cluster cluster, DisengageReason reason, String message, Kubeconfig kubeconfig, Object engagement)
    implements News {
  /** The type of a change. */
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
    // A reason that a newer daemon added becomes UNSPECIFIED.
    boolean isKnown = reason != DisengageReason.UNRECOGNIZED;
    var understood = isKnown ? reason : DisengageReason.DISENGAGE_REASON_UNSPECIFIED;
    return new Event(Type.DISENGAGED, ended.cluster(), understood, message, null, ended.engagement());
  }

  @Override
  public String toString() { // without the kubeconfig, which is secret
    return type + " " + cluster.getName() + (type == Type.DISENGAGED ? " " + reason : "");
  }
}
