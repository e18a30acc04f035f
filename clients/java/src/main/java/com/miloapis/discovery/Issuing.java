package com.miloapis.discovery;

import com.miloapis.discovery.v1.Kubeconfig;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.PriorityBlockingQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Supplier;

/**
 * Limits concurrent requests for credentials, over all clusters. A failed request keeps its slot for another second.
 * Requests of clusters whose last request failed come after all others, so that clusters of an unavailable issuer delay
 * the others less.
 */
final class Issuing implements AutoCloseable {
  private static final int MAX_CONCURRENT = 16;
  private static final long PAUSE_AFTER_FAILURE_MS = 1000;

  private final ThreadPoolExecutor threads =
      new ThreadPoolExecutor(
          MAX_CONCURRENT,
          MAX_CONCURRENT,
          10,
          TimeUnit.SECONDS,
          new PriorityBlockingQueue<>(),
          Issuing::thread,
          (request, closed) -> refuse(request));
  private final AtomicLong requests = new AtomicLong();

  Issuing() {
    threads.allowCoreThreadTimeOut(true);
  }

  /** A request, ordered by its priority and its number. */
  private record Request(boolean isRetry, long number, CompletableFuture<Kubeconfig> issued, Runnable call)
      implements Runnable, Comparable<Request> {
    @Override
    public void run() {
      call.run();
    }

    @Override
    public int compareTo(Request other) {
      return isRetry == other.isRetry ? Long.compare(number, other.number) : Boolean.compare(isRetry, other.isRetry);
    }
  }

  CompletableFuture<Kubeconfig> issue(Supplier<Kubeconfig> call, boolean isRetry) {
    var issued = new CompletableFuture<Kubeconfig>();
    threads.execute(
        new Request(
            isRetry,
            requests.getAndIncrement(),
            issued,
            () -> {
              try {
                issued.complete(call.get());
              } catch (Throwable failure) {
                issued.completeExceptionally(failure);
                pauseAfterFailure();
              }
            }));
    return issued;
  }

  private static void pauseAfterFailure() {
    try {
      Thread.sleep(PAUSE_AFTER_FAILURE_MS);
    } catch (InterruptedException closed) {
      Thread.currentThread().interrupt();
    }
  }

  private static Thread thread(Runnable work) {
    var thread = new Thread(work, "milo-discovery credentials");
    thread.setDaemon(true);
    return thread;
  }

  /** Fail a request after the client was closed, because callers wait for its result. */
  private static void refuse(Runnable request) {
    ((Request) request).issued.completeExceptionally(new DiscoveryException("the client was closed"));
  }

  @Override
  public void close() {
    threads.shutdownNow().forEach(Issuing::refuse);
  }
}
