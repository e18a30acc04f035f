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
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** A client of the daemon at {@code unix:///path} or {@code HOST:PORT}. It may be used from any thread. */
public final class DiscoveryClient implements AutoCloseable {
  private static final String DEFAULT_ADDRESS = "unix:///run/milo-discovery/discovery.sock";
  private static final Duration TIMEOUT = Duration.ofSeconds(30);
  private static final Set<Status.Code> BROKEN = Set.of(Status.Code.UNAVAILABLE, Status.Code.DEADLINE_EXCEEDED);
  private static final int MAX_MESSAGE_BYTES = 64 << 20;

  private final String address;
  private final Credentials credentials;
  private final EventLoopGroup sockets;
  private final Issuing issuing = new Issuing();
  private ManagedChannel shared; // for all unary calls
  private List<String> sharedFiles;

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
    var request = EndSubscriptionRequest.newBuilder().setSubscriber(subscriber).build();
    call(TIMEOUT, stub -> stub.endSubscription(request));
  }

  RenewOwnershipResponse renewOwnership(Duration timeout) {
    return call(timeout, stub -> stub.renewOwnership(RenewOwnershipRequest.getDefaultInstance()));
  }

  /** Open a channel with the current certificates. It connects on the first call. */
  ManagedChannel connect() {
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
    return builder
        .maxInboundMessageSize(MAX_MESSAGE_BYTES)
        .proxyDetector(target -> null) // the daemon is on the same host or network
        .keepAliveTime(30, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .idleTimeout(60, TimeUnit.SECONDS)
        .build();
  }

  io.grpc.ClientInterceptor authorization() {
    return MetadataUtils.newAttachHeadersInterceptor(credentials.metadata());
  }

  private <T> T call(Duration timeout, Function<DiscoveryServiceBlockingStub, T> method) {
    ManagedChannel channel = sharedChannel();
    try {
      var stub = DiscoveryServiceGrpc.newBlockingStub(channel).withInterceptors(authorization());
      return method.apply(stub.withDeadlineAfter(timeout.toMillis(), TimeUnit.MILLISECONDS));
    } catch (StatusRuntimeException error) {
      if (BROKEN.contains(error.getStatus().getCode())) {
        replace(channel); // its connection may be half-open, or to a daemon that has stopped
      }
      throw DiscoveryException.of(error);
    }
  }

  private synchronized ManagedChannel sharedChannel() {
    var files = credentials.channelFiles(); // certificates can be renewed in place
    if (shared != null && !files.equals(sharedFiles)) {
      replace(shared);
    }
    if (shared == null) {
      shared = connect();
      sharedFiles = files;
    }
    return shared;
  }

  /** Make the next call open a new channel. Calls in flight continue. */
  private synchronized void replace(ManagedChannel channel) {
    channel.shutdown();
    if (shared == channel) {
      shared = null;
    }
  }

  @Override
  public void close() {
    issuing.close();
    synchronized (this) {
      if (shared != null) {
        shared.shutdownNow();
      }
    }
    if (sockets != null) {
      sockets.shutdownGracefully(0, 1, TimeUnit.SECONDS);
    }
  }
}
