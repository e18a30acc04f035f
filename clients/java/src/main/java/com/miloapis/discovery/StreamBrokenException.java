package com.miloapis.discovery;

/** Thrown when a stream violated the protocol or missed its heartbeats, or the daemon does not own its clusters. Watches recover. */
final class StreamBrokenException extends DiscoveryException {
  StreamBrokenException(String message) {
    super(message);
  }
}
