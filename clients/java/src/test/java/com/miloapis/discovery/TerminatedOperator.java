package com.miloapis.discovery;

import java.util.Scanner;
import java.util.concurrent.CountDownLatch;

/** An operator with the shutdown hook of the README. Its handlers clean up until a line arrives on standard input. */
final class TerminatedOperator {
  private TerminatedOperator() {}

  public static void main(String[] arguments) throws InterruptedException {
    var finish = new CountDownLatch(1);
    var reading =
        new Thread(
            () -> {
              new Scanner(System.in).nextLine();
              finish.countDown();
            });
    reading.setDaemon(true);
    reading.start();
    try (var client = new DiscoveryClient();
        var fleet = new Fleet(client, WatchOptions.defaults())) {
      var running = Thread.currentThread();
      Runtime.getRuntime().addShutdownHook(new Thread(() -> end(fleet, running)));
      fleet.run(
          cluster -> {
            System.out.println("begin " + cluster.name());
            cluster.awaitEnd();
            System.out.println("signal " + cluster.name() + " " + cluster.credential().access().token());
            finish.await();
            System.out.println("end " + cluster.name());
          });
    }
  }

  private static void end(Fleet fleet, Thread running) {
    fleet.close();
    try {
      running.join();
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
