package com.miloapis.discovery;

import com.google.protobuf.ByteString;
import com.google.protobuf.Message;
import com.google.protobuf.Timestamp;
import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.ClusterEvent;
import com.miloapis.discovery.v1.DisengageReason;
import com.miloapis.discovery.v1.DiscoveryServiceGrpc;
import com.miloapis.discovery.v1.EndSubscriptionRequest;
import com.miloapis.discovery.v1.EndSubscriptionResponse;
import com.miloapis.discovery.v1.IssueKubeconfigRequest;
import com.miloapis.discovery.v1.IssueKubeconfigResponse;
import com.miloapis.discovery.v1.Kubeconfig;
import com.miloapis.discovery.v1.ReleaseClusterRequest;
import com.miloapis.discovery.v1.ReleaseClusterResponse;
import com.miloapis.discovery.v1.RenewOwnershipRequest;
import com.miloapis.discovery.v1.RenewOwnershipResponse;
import com.miloapis.discovery.v1.WatchClustersRequest;
import com.miloapis.discovery.v1.WatchClustersResponse;
import io.grpc.Grpc;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerInterceptors;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollServerDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.netty.shaded.io.netty.util.concurrent.DefaultThreadFactory;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import java.util.function.Function;

/** A fake daemon on a loopback port or a Unix socket, with scripted streams and responses. */
final class FakeDaemon implements AutoCloseable {
  private static final long WITHIN_MS = 300_000;

  final List<Stream> streams = new CopyOnWriteArrayList<>();
  final List<Message> calls = new CopyOnWriteArrayList<>();

  /** The remote addresses of unary calls. */
  final Set<String> callers = ConcurrentHashMap.newKeySet();

  /** Handles IssueKubeconfig. If it throws a StatusRuntimeException, the call fails with that status. */
  volatile Function<IssueKubeconfigRequest, Kubeconfig> issue = issuing(Duration.ofHours(1));

  /** If set, ReleaseCluster fails with this status. */
  volatile Status releaseFailure;

  /** If set, the daemon is sharded, and RenewOwnership answers with this time; with none if it is zero. */
  volatile Duration validFor;

  private final AtomicInteger revisions = new AtomicInteger();
  private final Path socket;
  private int port;
  private Server server;

  FakeDaemon() throws IOException {
    this(null);
  }

  /**
   * @param socket the path of a Unix socket; null for a loopback port
   */
  FakeDaemon(Path socket) throws IOException {
    this.socket = socket;
    start();
  }

  void start() throws IOException {
    var service = ServerInterceptors.intercept(new Service(), new Callers());
    NettyServerBuilder builder;
    if (socket == null) {
      builder = NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port));
    } else {
      var threads = new EpollEventLoopGroup(1, new DefaultThreadFactory("daemon", true));
      builder = NettyServerBuilder.forAddress(new DomainSocketAddress(socket.toFile())).channelType(EpollServerDomainSocketChannel.class);
      builder.bossEventLoopGroup(threads).workerEventLoopGroup(threads);
    }
    builder.executor(Executors.newCachedThreadPool()).addService(service);
    // Like the real daemon, allow keepalive pings on idle streams.
    server = builder.permitKeepAliveTime(1, TimeUnit.SECONDS).permitKeepAliveWithoutCalls(true).build().start();
    port = socket == null ? server.getPort() : 0;
  }

  /** Stop and cut all connections, as if the daemon was killed. */
  void kill() throws InterruptedException {
    server.shutdownNow().awaitTermination();
  }

  @Override
  public void close() {
    server.shutdownNow();
  }

  int port() {
    return port;
  }

  DiscoveryClient client() {
    return socket == null ? client(port) : new DiscoveryClient("unix://" + socket, new Credentials(null, null, null, null));
  }

  static DiscoveryClient client(int port) {
    return new DiscoveryClient("127.0.0.1:" + port, new Credentials(null, null, null, null));
  }

  /** Wait until the stream with this number is open, and return it. */
  Stream stream(int number) {
    until(() -> streams.size() >= number, "stream " + number);
    return streams.get(number - 1);
  }

  <T extends Message> List<T> called(Class<T> request) {
    return calls.stream().filter(request::isInstance).map(request::cast).toList();
  }

  static Function<IssueKubeconfigRequest, Kubeconfig> issuing(Duration life) {
    return issuing(life, life.dividedBy(2));
  }

  static Function<IssueKubeconfigRequest, Kubeconfig> issuing(Duration life, Duration refresh) {
    var number = new AtomicInteger();
    return request -> kubeconfig(request.getCluster(), "token-" + number.incrementAndGet(), Instant.now(), life, refresh);
  }

  /** Wait until a condition is true. */
  static void until(BooleanSupplier condition, String what) {
    long limit = System.currentTimeMillis() + WITHIN_MS;
    while (!condition.getAsBoolean()) {
      if (System.currentTimeMillis() > limit) {
        throw new AssertionError("timed out after " + WITHIN_MS + " ms waiting for: " + what);
      }
      try {
        Thread.sleep(5);
      } catch (InterruptedException interrupted) {
        throw new AssertionError(interrupted);
      }
    }
  }

  static Cluster.Builder cluster(String name) {
    return Cluster.newBuilder().setName(name).setUid("uid-" + name).setIncarnation(name + "-1").setEndpoint("https://milo.test");
  }

  static ClusterEvent engaged(String name) {
    return event(ClusterEvent.Type.TYPE_ENGAGED, cluster(name)).build();
  }

  static ClusterEvent disengaged(String name, DisengageReason reason) {
    return event(ClusterEvent.Type.TYPE_DISENGAGED, cluster(name)).setReason(reason).build();
  }

  static ClusterEvent.Builder event(ClusterEvent.Type type, Cluster.Builder cluster) {
    return ClusterEvent.newBuilder().setType(type).setCluster(cluster);
  }

  static Kubeconfig kubeconfig(String name, String token, Duration life) {
    return kubeconfig(name, token, Instant.now(), life, life.dividedBy(2));
  }

  static Kubeconfig kubeconfig(String name, String token, Instant issuedAt, Duration life, Duration refresh) {
    var file =
        """
        {"apiVersion": "v1", "kind": "Config", "current-context": "a",
         "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
         "clusters": [{"name": "a", "cluster": {"server": "https://milo.test"}}],
         "users": [{"name": "a", "user": {"token": "%s"}}]}"""
            .formatted(token);
    return Kubeconfig.newBuilder()
        .setCluster(name)
        .setKubeconfig(ByteString.copyFromUtf8(file))
        .setIssuedAt(timestamp(issuedAt))
        .setRefreshAfter(timestamp(issuedAt.plus(refresh)))
        .setExpiresAt(timestamp(issuedAt.plus(life)))
        .build();
  }

  private static Timestamp timestamp(Instant at) {
    return Timestamp.newBuilder().setSeconds(at.getEpochSecond()).setNanos(at.getNano()).build();
  }

  /** The server side of a stream. */
  final class Stream {
    private final StreamObserver<WatchClustersResponse> responses;
    private String revision;

    private Stream(WatchClustersRequest request, StreamObserver<WatchClustersResponse> responses) {
      this.revision = request.getResumeRevision();
      this.responses = responses;
    }

    void snapshot(ClusterEvent... events) {
      send(true, List.of(events));
    }

    void send(ClusterEvent... events) {
      send(false, List.of(events));
    }

    void send(boolean reset, List<ClusterEvent> events) {
      String previous = reset ? "" : revision;
      revision = "r" + revisions.incrementAndGet();
      responses.onNext(
          WatchClustersResponse.newBuilder()
              .addAllEvents(events)
              .setRevision(revision)
              .setPreviousRevision(previous)
              .setReset(reset)
              .setSynced(true)
              .setSharded(validFor != null)
              .build());
    }

    /** Send a batch, unless the client has ended the stream. */
    void sendIfOpen(ClusterEvent... events) {
      try {
        send(events);
      } catch (StatusRuntimeException cancelled) {
        // The stream was on a connection that the client has closed.
      }
    }

    void end(Status status) {
      end(status, new Metadata());
    }

    void end(Status status, Metadata trailers) {
      responses.onError(status.asRuntimeException(trailers));
    }
  }

  private final class Service extends DiscoveryServiceGrpc.DiscoveryServiceImplBase {
    @Override
    public void watchClusters(WatchClustersRequest request, StreamObserver<WatchClustersResponse> responses) {
      streams.add(new Stream(request, responses));
    }

    @Override
    public void issueKubeconfig(IssueKubeconfigRequest request, StreamObserver<IssueKubeconfigResponse> response) {
      calls.add(request);
      try {
        response.onNext(IssueKubeconfigResponse.newBuilder().setKubeconfig(issue.apply(request)).build());
        response.onCompleted();
      } catch (RuntimeException refused) {
        response.onError(refused);
      }
    }

    @Override
    public void releaseCluster(ReleaseClusterRequest request, StreamObserver<ReleaseClusterResponse> response) {
      calls.add(request);
      if (releaseFailure != null) {
        response.onError(releaseFailure.asRuntimeException());
        return;
      }
      response.onNext(ReleaseClusterResponse.getDefaultInstance());
      response.onCompleted();
    }

    @Override
    public void renewOwnership(RenewOwnershipRequest request, StreamObserver<RenewOwnershipResponse> response) {
      calls.add(request);
      var answer = RenewOwnershipResponse.newBuilder().setSharded(true);
      if (!validFor.isZero()) {
        answer.getValidForBuilder().setSeconds(validFor.getSeconds());
      }
      response.onNext(answer.build());
      response.onCompleted();
    }

    @Override
    public void endSubscription(EndSubscriptionRequest request, StreamObserver<EndSubscriptionResponse> response) {
      calls.add(request);
      response.onNext(EndSubscriptionResponse.getDefaultInstance());
      response.onCompleted();
    }
  }

  private final class Callers implements ServerInterceptor {
    @Override
    public <Q, R> ServerCall.Listener<Q> interceptCall(ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
      if (!call.getMethodDescriptor().equals(DiscoveryServiceGrpc.getWatchClustersMethod())) {
        callers.add(String.valueOf(call.getAttributes().get(Grpc.TRANSPORT_ATTR_REMOTE_ADDR)));
      }
      return next.startCall(call, headers);
    }
  }
}
