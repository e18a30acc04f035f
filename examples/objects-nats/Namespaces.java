// Follows the namespaces of all projects, with nothing but a NATS client.
import io.nats.client.Connection;
import io.nats.client.JetStreamApiException;
import io.nats.client.JetStreamStatusCheckedException;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.api.OrderedConsumerConfiguration;
import java.io.IOException;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;

class Namespaces {
    static class Scope {
        long epoch = -1;
        final Map<String, Long> namespaces = new HashMap<>(); // with their epochs
    }

    public static void main(String[] arguments) throws Exception {
        Connection connection = Nats.connect(System.getenv().getOrDefault("NATS_URL", "nats://localhost:4222"));
        while (true) { // once for each stream: a later one has other sequences
            try {
                read(connection);
            } catch (IOException | JetStreamApiException | JetStreamStatusCheckedException problem) {
                System.out.println("STALE: " + problem.getMessage());
                Thread.sleep(1000);
            }
        }
    }

    static String stream(Connection connection) throws Exception {
        var created = connection.getStreamContext("milo").getStreamInfo().getCreateTime();
        return created + " " + connection.getServerInfo().getServerId();
    }

    static void read(Connection connection) throws Exception {
        String stream = stream(connection);
        Map<String, Scope> known = new HashMap<>(); // by project
        var filters =
            new OrderedConsumerConfiguration().filterSubjects("milo.objects.*.*.core.namespaces.>", "milo.publisher");
        try (var messages = connection.getStreamContext("milo").createOrderedConsumer(filters).iterate()) {
            while (true) {
                Message message = messages.nextMessage(Duration.ofSeconds(30));
                if (message == null) System.out.println("STALE: no publisher has been heard for 30 s");
                if (message == null || message.getSubject().equals("milo.publisher")) {
                    if (!stream(connection).equals(stream)) return;
                    continue;
                }
                String[] parts = message.getSubject().split("\\.");
                for (int i = 0; i < parts.length; i++) parts[i] = URLDecoder.decode(parts[i], StandardCharsets.UTF_8);
                String project = parts[2].equals("_") ? parts[3] : parts[2] + "#" + parts[3];
                Scope scope = known.computeIfAbsent(project, name -> new Scope());
                var headers = message.getHeaders();
                String state = headers.getFirst("Milo-State");
                long epoch = Long.parseLong(headers.getFirst("Milo-Epoch"));
                if (epoch < scope.epoch) continue; // of a scope that has ended
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
    }
}
