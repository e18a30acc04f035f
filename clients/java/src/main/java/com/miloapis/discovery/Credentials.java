package com.miloapis.discovery;

import io.grpc.Metadata;
import io.grpc.netty.shaded.io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslContext;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import javax.net.ssl.SSLException;

/**
 * Credentials for the daemon. None are needed on a Unix socket, where the kernel reports the caller's uid. Certificates are read for
 * each channel and the token for each call, so all of them can be renewed in place. All components may be null.
 *
 * @param caFile CA certificates that the daemon's certificate is verified against; enables TLS
 * @param certificateFile client certificate for mutual TLS
 * @param keyFile private key of the client certificate, in PKCS#8
 * @param tokenFile bearer token, such as a projected service account token; never sent over TCP without TLS
 */
public record Credentials(Path caFile, Path certificateFile, Path keyFile, Path tokenFile) {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  /** Read MILO_DISCOVERY_CA_FILE, _CERTIFICATE_FILE, _KEY_FILE and _TOKEN_FILE. */
  public static Credentials fromEnvironment() {
    if (path("SERVER_UID") != null) {
      throw new DiscoveryException("MILO_DISCOVERY_SERVER_UID is set, but this client cannot verify the user that runs a server: unset it");
    }
    return new Credentials(path("CA_FILE"), path("CERTIFICATE_FILE"), path("KEY_FILE"), path("TOKEN_FILE"));
  }

  private static Path path(String name) {
    String value = System.getenv().getOrDefault("MILO_DISCOVERY_" + name, "");
    return value.isEmpty() ? null : Path.of(value);
  }

  /** Throw unless the credentials may be used with the address. */
  void check(String address) {
    boolean isSocket = address.startsWith("unix:");
    var problems =
        Map.of(
            "certificateFile and keyFile must be set together", (certificateFile == null) != (keyFile == null),
            "certificateFile needs TLS: set caFile as well", certificateFile != null && caFile == null,
            address + " is a Unix socket, which has no TLS: remove caFile", isSocket && caFile != null,
            "the token would be sent to " + address + " unencrypted: set caFile to use TLS",
                !isSocket && tokenFile != null && caFile == null);
    problems.forEach(
        (problem, applies) -> {
          if (applies) {
            throw new DiscoveryException(problem);
          }
        });
  }

  /** Return the contents of the TLS files. */
  List<String> channelFiles() {
    return Stream.of(caFile, certificateFile, keyFile)
        .map(path -> path == null ? "" : new String(read(path), StandardCharsets.ISO_8859_1))
        .toList();
  }

  SslContext tls() {
    try {
      var context = GrpcSslContexts.forClient().trustManager(new ByteArrayInputStream(read(caFile)));
      if (certificateFile != null) {
        context.keyManager(new ByteArrayInputStream(read(certificateFile)), new ByteArrayInputStream(read(keyFile)));
      }
      return context.build();
    } catch (SSLException | IllegalArgumentException error) { // the latter for files without a certificate or key
      throw new DiscoveryException("cannot use the TLS files: " + error.getMessage());
    }
  }

  /** Return the metadata for a new call, with the current token. */
  Metadata metadata() {
    var metadata = new Metadata();
    if (tokenFile != null) {
      String token = new String(read(tokenFile), StandardCharsets.ISO_8859_1).strip();
      if (!token.matches("[\\x21-\\x7e]+")) {
        throw new DiscoveryException(tokenFile + " does not contain a token: it must be one word of printable ASCII characters");
      }
      metadata.put(AUTHORIZATION, "Bearer " + token);
    }
    return metadata;
  }

  private static byte[] read(Path path) {
    try {
      return Files.readAllBytes(path);
    } catch (IOException error) {
      throw new DiscoveryException("cannot read " + path + ": " + error);
    }
  }
}
