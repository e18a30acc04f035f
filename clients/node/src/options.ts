/** Selects clusters. All fields that are set must match. */
export interface Filter {
  /** Kubernetes syntax: "env=prod", "tier!=silver", "env in (prod, staging)". */
  labelSelector?: string;
  names?: string[];
  organizations?: string[];
  /** Names of sources, of a daemon with several. */
  sources?: string[];
}

export interface WatchOptions extends Filter {
  /** Deliver a kubeconfig with each ENGAGED, if available, and a new one in a KUBECONFIG event before it expires. */
  includeKubeconfigs?: boolean;
  /** Requested lifetime of these kubeconfigs; the daemon may shorten it. */
  kubeconfigTtlMs?: number;
  /** Interval of heartbeats on an idle stream, 30 s by default. After three missed heartbeats, the watch reconnects. */
  heartbeatIntervalMs?: number;
  /** Name under which draining clusters are released. No other watch of the caller may use it at the same time. */
  subscriber?: string;
  /** Ends the watch when it is aborted. */
  signal?: AbortSignal;
  /**
   * Called with the reason when a stream breaks or cannot be opened, by default to print it. The watch reconnects;
   * clusters stay engaged until the ownership of a sharded daemon expires.
   */
  onDisconnect?: (error: Error) => void;
}
