package com.miloapis.discovery;

/** The stream violated the protocol, or fell silent. A watch recovers by itself. */
final class StreamBrokenException extends DiscoveryException {
  StreamBrokenException(String message) {
    super(message);
  }
}
