package com.miloapis.discovery;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Forwards connections to a loopback port. While it is stopped, it behaves like a suspended process: connections are accepted, and
 * nothing is answered.
 */
final class Relay implements AutoCloseable {
  private final int target;
  private final ServerSocket listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
  private final List<Socket> sockets = new CopyOnWriteArrayList<>();
  private final AtomicInteger accepted = new AtomicInteger();
  private boolean isStopped;

  Relay(int target) throws IOException {
    this.target = target;
    begin(
        () -> {
          while (true) {
            var socket = listener.accept();
            sockets.add(socket);
            accepted.incrementAndGet();
            begin(() -> forward(socket));
          }
        });
  }

  int port() {
    return listener.getLocalPort();
  }

  /** The number of connections that were accepted so far. */
  int accepted() {
    return accepted.get();
  }

  synchronized void stop() {
    isStopped = true;
  }

  synchronized void resume() {
    isStopped = false;
    notifyAll();
  }

  @Override
  public void close() throws IOException {
    listener.close();
    for (Socket socket : sockets) {
      socket.close();
    }
    resume();
  }

  private synchronized void awaitResumed() throws InterruptedException {
    while (isStopped) {
      wait();
    }
  }

  private void forward(Socket socket) throws IOException, InterruptedException {
    awaitResumed();
    var there = new Socket(InetAddress.getLoopbackAddress(), target);
    sockets.add(there);
    begin(() -> copy(there, socket));
    copy(socket, there);
  }

  private void copy(Socket from, Socket to) throws IOException, InterruptedException {
    var buffer = new byte[1 << 16];
    try (from;
        to) {
      for (int read = from.getInputStream().read(buffer); read >= 0; read = from.getInputStream().read(buffer)) {
        awaitResumed();
        to.getOutputStream().write(buffer, 0, read);
      }
    }
  }

  private interface Work {
    void run() throws IOException, InterruptedException;
  }

  /** Run the work in a new thread, until it ends or its sockets are closed. */
  private static void begin(Work work) {
    var thread =
        new Thread(
            () -> {
              try {
                work.run();
              } catch (IOException closed) {
                // At the end of a connection or of the relay.
              } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
              }
            },
            "relay");
    thread.setDaemon(true);
    thread.start();
  }
}
