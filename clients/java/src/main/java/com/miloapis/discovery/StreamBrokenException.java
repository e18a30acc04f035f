package com.miloapis.discovery;

/** Thrown when a stream violated the protocol, or missed its heartbeats. Watches recover from it. */
final class StreamBrokenException extends DiscoveryException {
  StreamBrokenException(String message) {
    super(message);
  }
}
