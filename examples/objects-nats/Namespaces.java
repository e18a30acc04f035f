// Follows the namespaces of all projects, with nothing but a NATS client.
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.PushSubscribeOptions;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;

class Namespaces {
    public static void main(String[] arguments) throws Exception {
        String url = System.getenv().getOrDefault("NATS_URL", "nats://localhost:4222");
        var options = PushSubscribeOptions.builder().stream("milo").ordered(true).build();
        var subscription =
            Nats.connect(url).jetStream().subscribe("milo.objects.*.*.core.namespaces.>", options);
        while (true) {
            Message message = subscription.nextMessage(Duration.ofHours(1));
            if (message == null) continue;
            String[] parts = message.getSubject().split("\\.");
            String project = URLDecoder.decode(parts[3], StandardCharsets.UTF_8);
            var headers = message.getHeaders();
            String state = headers.getFirst("Milo-State"), gone = headers.getFirst("Milo-Gone");
            String what = state != null ? state : URLDecoder.decode(parts[7], StandardCharsets.UTF_8);
            System.out.println(project + " " + what + (gone == null ? "" : " " + gone));
        }
    }
}
