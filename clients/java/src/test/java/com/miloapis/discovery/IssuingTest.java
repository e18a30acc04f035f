package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertThrows;

import com.miloapis.discovery.v1.Kubeconfig;
import java.util.ArrayList;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

class IssuingTest {
  @Test
  void requestsThatWaitForASlotFailWhenTheClientIsClosed() {
    var never = new CountDownLatch(1);
    var issuing = new Issuing();
    var issued = new ArrayList<CompletableFuture<Kubeconfig>>();
    for (int number = 0; number < 20; number++) {
      issued.add(
          issuing.issue(
              () -> {
                try {
                  never.await();
                } catch (InterruptedException closed) {
                  throw new DiscoveryException("closed");
                }
                return Kubeconfig.getDefaultInstance();
              },
              false));
    }
    issuing.close();
    issued.add(issuing.issue(Kubeconfig::getDefaultInstance, false));
    for (var each : issued) {
      assertThrows(ExecutionException.class, () -> each.get(10, TimeUnit.SECONDS));
    }
  }
}
