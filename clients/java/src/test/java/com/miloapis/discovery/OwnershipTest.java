package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Duration;
import com.miloapis.discovery.v1.RenewOwnershipResponse;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

class OwnershipTest {
  private static final int SHORT_NANOS = 300_000_000;

  @Test
  void expiredOwnershipIsNotHeldAgainBeforeItsLossIsAcknowledged() throws InterruptedException {
    var ended = new CountDownLatch(1);
    var renewals = new AtomicInteger();
    Ownership.Renewal renewal = timeout -> {
      renewals.incrementAndGet();
      if (ended.getCount() > 0 && renewals.get() > 1) {
        throw new StreamBrokenException("the daemon is unreachable");
      }
      var validFor = renewals.get() == 1 ? Duration.newBuilder().setNanos(SHORT_NANOS) : Duration.newBuilder().setSeconds(100);
      return RenewOwnershipResponse.newBuilder().setSharded(true).setValidFor(validFor).build();
    };
    try (var ownership = new Ownership(renewal, ended::countDown)) {
      ownership.begin();
      ended.await();
      int before = renewals.get();
      while (renewals.get() < before + 2) { // the first of these renewals has succeeded by then
        Thread.sleep(10);
      }

      assertFalse(ownership.isHeld());
      ownership.acknowledgeLoss();
      assertTrue(ownership.isHeld());
    }
  }

  @Test
  void ownershipThatExpiredBeforeItsRenewalArrivedIsLost() throws InterruptedException {
    var ended = new CountDownLatch(1);
    var renewals = new AtomicInteger();
    Ownership.Renewal renewal =
        timeout -> {
          var validFor = Duration.newBuilder().setNanos(SHORT_NANOS);
          if (renewals.incrementAndGet() > 1) {
            sleep(SHORT_NANOS / 1_000_000);
            validFor = Duration.newBuilder().setSeconds(100);
          }
          return RenewOwnershipResponse.newBuilder().setSharded(true).setValidFor(validFor).build();
        };
    try (var ownership = new Ownership(renewal, ended::countDown)) {
      ownership.begin();
      FakeDaemon.until(() -> ended.getCount() == 0, "the loss is reported");
      assertFalse(ownership.isHeld());
    }
  }

  private static void sleep(long ms) {
    try {
      Thread.sleep(ms);
    } catch (InterruptedException closed) {
      Thread.currentThread().interrupt();
    }
  }
}
