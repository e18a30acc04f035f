package com.miloapis.discovery;

import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.ClusterFilter;
import com.miloapis.discovery.v1.DiscoveryServiceGrpc;
import com.miloapis.discovery.v1.DiscoveryServiceGrpc.DiscoveryServiceBlockingStub;
import com.miloapis.discovery.v1.EndSubscriptionRequest;
import com.miloapis.discovery.v1.GetClusterRequest;
import com.miloapis.discovery.v1.GetClusterResponse;
import com.miloapis.discovery.v1.GetServerInfoRequest;
import com.miloapis.discovery.v1.GetServerInfoResponse;
import com.miloapis.discovery.v1.IssueKubeconfigRequest;
import com.miloapis.discovery.v1.Kubeconfig;
import com.miloapis.discovery.v1.ListClustersRequest;
import com.miloapis.discovery.v1.ReleaseClusterRequest;
import com.miloapis.discovery.v1.RenewOwnershipRequest;
import com.miloapis.discovery.v1.RenewOwnershipResponse;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollChannelOption;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.netty.shaded.io.netty.util.concurrent.DefaultThreadFactory;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** A client of the daemon at {@code unix:///path} or {@code HOST:PORT}. It may be used from any thread. */
public final class DiscoveryClient implements AutoCloseable {
  private static final String DEFAULT_ADDRESS = "unix:///run/milo-discovery/discovery.sock";
  private static final Duration TIMEOUT = Duration.ofSeconds(30);
  private static final Duration CLOSING = Duration.ofSeconds(1);
  private static final Set<Status.Code> BROKEN = Set.of(Status.Code.UNAVAILABLE, Status.Code.DEADLINE_EXCEEDED);
  private static final int MAX_MESSAGE_BYTES = 64 << 20;

  private final String address;
  private final Credentials credentials;
  private final EventLoopGroup sockets;
  private final Issuing issuing = new Issuing();
  private final Set<ManagedChannel> channels = new HashSet<>();
  private final Set<Watch> watches = new HashSet<>();
  private Lane shared; // for all unary calls
  private boolean isClosed;

  /** The channel that unary calls share until its connection fails. It is closed after the last call on it. */
  private static final class Lane {
    final ManagedChannel channel;
    final List<String> files; // of its credentials
    int calls; // in flight

    Lane(ManagedChannel channel, List<String> files) {
      this.channel = channel;
      this.files = files;
    }
  }

  /** Create a client of the daemon at MILO_DISCOVERY_ADDRESS, with the credentials of the environment. */
  public DiscoveryClient() {
    this(System.getenv().getOrDefault("MILO_DISCOVERY_ADDRESS", DEFAULT_ADDRESS), Credentials.fromEnvironment());
  }

  public DiscoveryClient(String address, Credentials credentials) {
    if (!address.matches("unix:///.+|[^/]+:\\d+")) {
      throw new DiscoveryException("address " + address + " is neither unix:///path/to/socket nor HOST:PORT");
    }
    credentials.check(address);
    this.address = address;
    this.credentials = credentials;
    var threads = new DefaultThreadFactory("milo-discovery", true);
    this.sockets = address.startsWith("unix:") ? new EpollEventLoopGroup(1, threads) : null;
  }

  /** Return a watch of the clusters. It begins with {@link Watch#run}. */
  public Watch watch(WatchOptions options) {
    return new Watch(this, options);
  }

  /** Return all engaged clusters that match the filter, ordered by name. */
  public List<Cluster> list(ClusterFilter filter) {
    var clusters = new ArrayList<Cluster>();
    String token = "";
    do {
      var request = ListClustersRequest.newBuilder().setFilter(filter).setPageToken(token).build();
      var page = call(TIMEOUT, stub -> stub.listClusters(request));
      clusters.addAll(page.getClustersList());
      token = page.getNextPageToken();
    } while (!token.isEmpty());
    return clusters;
  }

  /** Return the daemon's state of a cluster, engaged or not. */
  public GetClusterResponse get(String name) {
    return call(TIMEOUT, stub -> stub.getCluster(GetClusterRequest.newBuilder().setName(name).build()));
  }

  public GetServerInfoResponse serverInfo() {
    return call(TIMEOUT, stub -> stub.getServerInfo(GetServerInfoRequest.getDefaultInstance()));
  }

  /** Issue a short-lived kubeconfig for an engaged cluster; only for that incarnation, if it is not empty. */
  public Kubeconfig issueKubeconfig(String cluster, String incarnation) {
    var request = IssueKubeconfigRequest.newBuilder().setCluster(cluster).setIncarnation(incarnation).build();
    var issued = call(TIMEOUT, stub -> stub.issueKubeconfig(request)).getKubeconfig();
    Access.of(issued); // throws unless it is of the form that the daemon writes
    return issued;
  }

  /** Issue a kubeconfig for a credential; {@code isRetry} if the last request for it failed. */
  CompletableFuture<Kubeconfig> issueCredential(String cluster, String incarnation, boolean isRetry) {
    return issuing.issue(() -> issueKubeconfig(cluster, incarnation), isRetry);
  }

  /** Confirm that a subscriber's work on a draining cluster has ended. A repeated call is a no-op. */
  public void release(Cluster cluster, String subscriber) {
    var request =
        ReleaseClusterRequest.newBuilder()
            .setCluster(cluster.getName())
            .setIncarnation(cluster.getIncarnation())
            .setSubscriber(subscriber)
            .build();
    call(TIMEOUT, stub -> stub.releaseCluster(request));
  }

  /** Notify the daemon that a subscriber has finished all its work, so that no draining cluster waits for it. */
  public void endSubscription(String subscriber) {
    endSubscription(subscriber, TIMEOUT);
  }

  void endSubscription(String subscriber, Duration timeout) {
    var request = EndSubscriptionRequest.newBuilder().setSubscriber(subscriber).build();
    call(timeout, stub -> stub.endSubscription(request));
  }

  /** {@code subscriber} is the one that holds clusters, or empty if it holds none, or confirms no releases. */
  RenewOwnershipResponse renewOwnership(String subscriber, Duration timeout) {
    var request = RenewOwnershipRequest.newBuilder().setSubscriber(subscriber).build();
    return call(timeout, stub -> stub.renewOwnership(request));
  }

  /** Record that a watch runs, which ends when the client is closed. */
  synchronized void opened(Watch watch) {
    requireOpen();
    watches.add(watch);
  }

  synchronized void closed(Watch watch) {
    watches.remove(watch);
  }

  /** Open a channel with the current certificates. It connects on the first call, and is closed with {@link #disconnect}. */
  synchronized ManagedChannel connect() {
    requireOpen();
    NettyChannelBuilder builder;
    if (sockets != null) {
      var socket = new DomainSocketAddress(address.substring("unix://".length()));
      builder = NettyChannelBuilder.forAddress(socket).eventLoopGroup(sockets).channelType(EpollDomainSocketChannel.class);
      // Null removes an option. Netty would log a warning for each socket, since these options are only for TCP.
      builder.withOption(ChannelOption.SO_KEEPALIVE, null).withOption(EpollChannelOption.TCP_USER_TIMEOUT, null);
    } else {
      builder = NettyChannelBuilder.forTarget("dns:///" + address);
    }
    if (credentials.caFile() == null) {
      builder.usePlaintext();
    } else {
      builder.sslContext(credentials.tls());
    }
    builder
        .disableRetry() // gRPC repeats calls without a delay on connections that end before they carry one
        .maxInboundMessageSize(MAX_MESSAGE_BYTES)
        .proxyDetector(target -> null) // the daemon is on the same host or network
        .keepAliveTime(30, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .idleTimeout(60, TimeUnit.SECONDS);
    var channel = builder.build();
    channels.add(channel);
    return channel;
  }

  /** Close a channel, and cancel its calls. */
  void disconnect(ManagedChannel channel) {
    synchronized (this) {
      if (!channels.remove(channel)) {
        return; // the client was closed, and its sockets cannot be used any more
      }
    }
    channel.shutdownNow();
  }

  private void requireOpen() {
    if (isClosed) {
      throw new DiscoveryException("the client was closed");
    }
  }

  io.grpc.ClientInterceptor authorization() {
    return MetadataUtils.newAttachHeadersInterceptor(credentials.metadata());
  }

  private <T> T call(Duration timeout, Function<DiscoveryServiceBlockingStub, T> method) {
    Lane lane = enter();
    boolean isBroken = false;
    try {
      var stub = DiscoveryServiceGrpc.newBlockingStub(lane.channel).withInterceptors(authorization());
      return method.apply(stub.withDeadlineAfter(timeout.toMillis(), TimeUnit.MILLISECONDS));
    } catch (StatusRuntimeException error) {
      var failure = DiscoveryException.of(error);
      // Its connection may be half-open, or to a daemon that has stopped. Errors that the daemon returns have a reason.
      isBroken = BROKEN.contains(failure.code()) && failure.reason().isEmpty();
      throw failure;
    } finally {
      leave(lane, isBroken);
    }
  }

  private synchronized Lane enter() {
    requireOpen();
    var files = credentials.channelFiles(); // certificates can be renewed in place
    if (shared != null && !files.equals(shared.files)) {
      retire(shared);
    }
    if (shared == null) {
      shared = new Lane(connect(), files);
    }
    shared.calls++;
    return shared;
  }

  private synchronized void leave(Lane lane, boolean isBroken) {
    lane.calls--;
    if (isBroken || lane != shared) {
      retire(lane);
    }
  }

  /** Make the next call open another channel. Calls in flight continue. */
  private void retire(Lane lane) {
    if (shared == lane) {
      shared = null;
    }
    if (lane.calls == 0) {
      disconnect(lane.channel);
    }
  }

  /** End all watches and calls. Later ones fail. */
  @Override
  public void close() {
    List<ManagedChannel> open;
    synchronized (this) {
      isClosed = true;
      watches.forEach(Watch::close);
      open = List.copyOf(channels);
      channels.clear();
    }
    issuing.close();
    open.forEach(ManagedChannel::shutdownNow);
    if (sockets != null) {
      awaitTermination(open); // channels use the threads of the sockets for that
      sockets.shutdownGracefully(0, 1, TimeUnit.SECONDS);
    }
  }

  private static void awaitTermination(List<ManagedChannel> channels) {
    long deadline = System.nanoTime() + CLOSING.toNanos();
    try {
      for (ManagedChannel channel : channels) {
        channel.awaitTermination(deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
      }
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
