package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.miloapis.discovery.v1.Kubeconfig;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import org.junit.jupiter.api.Test;

/** Tests of a credential, with scripted requests. */
class CredentialTest {
  private static final Duration HOUR = Duration.ofHours(1);

  private final List<CompletableFuture<Kubeconfig>> requests = new ArrayList<>();
  private final List<Kubeconfig> responses = new ArrayList<>();
  private CompletableFuture<Void> nextEvent = new CompletableFuture<>();
  private volatile Session.Known known = new Session.Known(FakeDaemon.cluster("a").build(), null, this);
  private final Credential credential = new Credential("a", () -> known, (incarnation, isRetry) -> request(), () -> nextEvent);

  /** Send a request, which is answered at once if there is a response. */
  private synchronized CompletableFuture<Kubeconfig> request() {
    var request = new CompletableFuture<Kubeconfig>();
    requests.add(request);
    if (requests.size() <= responses.size()) {
      request.complete(responses.get(requests.size() - 1));
    }
    return request;
  }

  private synchronized int requested() {
    return requests.size();
  }

  @Test
  void accessReturnsAResponseThatArrivesBeforeItWaits() {
    responses.add(FakeDaemon.kubeconfig("a", "one", HOUR));
    assertEquals("one", credential.access().token());
  }

  @Test
  void accessThrowsARefusalThatArrivesBeforeItWaits() {
    responses.add(Kubeconfig.getDefaultInstance());
    var error = assertThrows(DiscoveryException.class, credential::access);
    assertTrue(error.getMessage().startsWith("kubeconfig refused"), error.getMessage());
    assertThrows(DiscoveryException.class, credential::access);
    assertEquals(1, requested());
  }

  @Test
  void responseThatSeemsDueForRenewalIsNotRequestedAgainForSomeSeconds() {
    var dueSince = Instant.now().minus(HOUR.dividedBy(2));
    for (int number = 0; number < 10; number++) {
      responses.add(FakeDaemon.kubeconfig("a", "one", dueSince, HOUR, Duration.ofMinutes(1)));
    }
    for (int use = 0; use < 100; use++) {
      assertEquals("one", credential.access().token());
    }
    assertEquals(1, requested());
  }

  @Test
  void responseThatSeemsExpiredIsUsedAndNotRequestedAgainForSomeSeconds() {
    for (int number = 0; number < 10; number++) {
      responses.add(FakeDaemon.kubeconfig("a", "one", Instant.now().minus(HOUR.multipliedBy(2)), HOUR, Duration.ofMinutes(1)));
    }
    for (int use = 0; use < 100; use++) {
      assertEquals("one", credential.access().token());
    }
    assertEquals(1, requested());
  }

  @Test
  void endpointThatChangesDuringARequestIsRequestedAtOnceAndTheFirstResponseIsDropped() {
    var accessed = CompletableFuture.supplyAsync(() -> credential.access().token());
    FakeDaemon.until(() -> requested() == 1, "a kubeconfig is requested");
    known = new Session.Known(FakeDaemon.cluster("a").setEndpoint("https://moved.test").build(), null, this);
    var event = nextEvent;
    nextEvent = new CompletableFuture<>();
    event.complete(null);
    FakeDaemon.until(() -> requested() == 2, "a kubeconfig for the new endpoint is requested, while the first request is pending");
    requests.get(0).complete(FakeDaemon.kubeconfig("a", "former", HOUR));
    requests.get(1).complete(FakeDaemon.kubeconfig("a", "new", HOUR));
    assertEquals("new", accessed.join());
    assertEquals("new", credential.access().token());
    assertEquals(2, requested());
  }
}
