// Follows the namespaces of all projects, with nothing but a NATS client and the permissions of docs/objects-nats.md.
import io.nats.client.Connection;
import io.nats.client.ErrorListener;
import io.nats.client.JetStreamApiException;
import io.nats.client.JetStreamSubscription;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.Options;
import io.nats.client.PushSubscribeOptions;
import java.io.IOException;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;

class Namespaces {
    static class Scope {
        long epoch = -1;
        final Map<String, Long> namespaces = new HashMap<>(); // with their epochs
    }

    public static void main(String[] arguments) throws Exception {
        var options = Options.builder().server(System.getenv().getOrDefault("NATS_URL", Options.DEFAULT_URL));
        String user = System.getenv("NATS_USER");
        if (user != null) options.userInfo(user, System.getenv("NATS_PASSWORD"));
        AtomicInteger lost = new AtomicInteger(); // how many consumers were, with their stream perhaps
        ErrorListener listener = new ErrorListener() {
            @Override
            public void heartbeatAlarm(
                Connection connection, JetStreamSubscription consumer, long lastStream, long lastConsumer
            ) {
                lost.incrementAndGet();
            }
        };
        options.errorListener(listener).inboxPrefix("_INBOX_reader").maxReconnects(-1);
        Connection connection = Nats.connect(options.build());
        while (true) { // from the first message: without the stream's information, nothing says which stream it is
            try {
                read(connection, lost);
            } catch (IOException | JetStreamApiException | IllegalStateException problem) {
                System.out.println("STALE: " + problem.getMessage());
                Thread.sleep(1000);
            }
        }
    }

    /** Returns when another stream, or another server, may have taken the place of this one. */
    static void read(Connection connection, AtomicInteger lost) throws Exception {
        Map<String, Scope> known = new HashMap<>(); // by project
        String server = connection.getServerInfo().getServerId();
        int lostBefore = lost.get();
        // Push consumers with a single filter each, which NATS can permit.
        var options = PushSubscribeOptions.builder().stream("milo").ordered(true).build();
        JetStreamSubscription heartbeats = connection.jetStream().subscribe("milo.publisher", options);
        JetStreamSubscription messages =
            connection.jetStream().subscribe("milo.objects.*.*.core.namespaces.>", options);
        try {
            long heard = System.nanoTime();
            while (lost.get() == lostBefore && server.equals(connection.getServerInfo().getServerId())) {
                while (heartbeats.nextMessage(Duration.ofMillis(1)) != null) heard = System.nanoTime();
                long silent = Duration.ofNanos(System.nanoTime() - heard).toSeconds();
                if (silent > 30) System.out.println("STALE: no publisher has been heard for " + silent + " s");
                Message message = messages.nextMessage(Duration.ofSeconds(1));
                if (message != null) apply(known, message);
            }
        } finally {
            heartbeats.unsubscribe();
            messages.unsubscribe();
        }
    }

    static void apply(Map<String, Scope> known, Message message) {
        String[] parts = message.getSubject().split("\\.");
        for (int i = 0; i < parts.length; i++) parts[i] = URLDecoder.decode(parts[i], StandardCharsets.UTF_8);
        String project = parts[2].equals("_") ? parts[3] : parts[2] + "#" + parts[3];
        Scope scope = known.computeIfAbsent(project, name -> new Scope());
        var headers = message.getHeaders();
        String state = headers.getFirst("Milo-State");
        long epoch = Long.parseLong(headers.getFirst("Milo-Epoch"));
        if (epoch < scope.epoch) return; // of a scope that has ended
        if (state != null) {
            scope.epoch = epoch;
            scope.namespaces.values().removeIf(of -> of < epoch || state.equals("ENDED"));
        } else if (headers.getFirst("Milo-Gone") != null) {
            scope.namespaces.remove(parts[7]);
        } else {
            scope.namespaces.put(parts[7], epoch);
        }
        System.out.println(project + " " + (state == null ? parts[7] : state) + " " + scope.namespaces.size());
    }
}
