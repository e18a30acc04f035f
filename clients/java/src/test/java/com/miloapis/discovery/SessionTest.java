package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.gson.JsonPrimitive;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.util.JsonFormat;
import com.miloapis.discovery.v1.Cluster;
import com.miloapis.discovery.v1.DisengageReason;
import com.miloapis.discovery.v1.Kubeconfig;
import com.miloapis.discovery.v1.WatchClustersResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** Runs the session test cases that all clients share. */
class SessionTest {
  @TestFactory
  Stream<DynamicTest> sharedCases() throws IOException {
    String file = Files.readString(Path.of("../testdata/session_cases.json"));
    return JsonParser.parseString(file).getAsJsonObject().getAsJsonArray("cases").asList().stream()
        .map(JsonElement::getAsJsonObject)
        .map(one -> DynamicTest.dynamicTest(one.get("name").getAsString(), () -> run(one.getAsJsonArray("steps"))));
  }

  private static void run(JsonArray steps) throws InvalidProtocolBufferException {
    var session = new Session(kubeconfig -> true);
    for (JsonElement element : steps) {
      var step = element.getAsJsonObject();
      if (step.has("open")) {
        assertEquals(step.get("open").getAsString(), session.open());
      }
      if (step.has("batch")) {
        receive(session, step);
      }
      if (step.has("lose")) {
        assertEquals(news(step), describe(List.copyOf(session.loseOwnership())));
      }
      if (step.has("state")) {
        var state = step.getAsJsonObject("state");
        var view = session.view().stream().map(known -> describe(known.cluster().getName(), known.cluster(), known.kubeconfig(), "", ""));
        assertEquals(strings(state.getAsJsonArray("view")).stream().sorted().toList(), view.sorted().toList());
        assertEquals(state.get("revision").getAsString(), session.revision());
      }
    }
  }

  private static void receive(Session session, JsonObject step) throws InvalidProtocolBufferException {
    var batch = WatchClustersResponse.newBuilder();
    JsonFormat.parser().ignoringUnknownFields().merge(step.get("batch").toString(), batch);
    if (step.has("breaks")) {
      assertThrows(StreamBrokenException.class, () -> session.receive(batch.build()));
    } else {
      var found = describe(session.receive(batch.build()));
      if (step.has("news")) {
        assertEquals(news(step), found);
      }
    }
  }

  /** Return the expected news of a step, without notices that this client does not have. */
  private static List<String> news(JsonObject step) {
    return strings(step.getAsJsonArray("news")).stream().filter(line -> !line.startsWith("SYNCED")).toList();
  }

  private static List<String> strings(JsonArray array) {
    return array.asList().stream().map(JsonElement::getAsString).toList();
  }

  private static List<String> describe(List<News> news) {
    return news.stream().map(SessionTest::describe).toList();
  }

  private static String describe(News news) {
    String name = news.cluster().getName();
    return news instanceof Event event
        ? describe(event.type() + " " + name, event.cluster(), event.kubeconfig(), reason(event.reason()), event.message())
        : describe("REFRESHED " + name, news.cluster(), null, "", "");
  }

  private static String describe(String first, Cluster cluster, Kubeconfig kubeconfig, String reason, String message) {
    var words = new ArrayList<>(List.of(first));
    if (!cluster.getUid().isEmpty()) {
      words.add("uid=" + cluster.getUid());
    }
    if (!cluster.getIncarnation().isEmpty()) {
      words.add("incarnation=" + cluster.getIncarnation());
    }
    if (cluster.getSuspended()) {
      words.add("suspended");
    }
    if (cluster.hasDraining()) {
      words.add("draining=" + reason(cluster.getDraining().getReason()));
    }
    if (!reason.isEmpty() && !reason.equals("UNSPECIFIED")) {
      words.add("reason=" + reason);
    }
    if (!message.isEmpty()) {
      words.add("message=" + new JsonPrimitive(message));
    }
    if (kubeconfig != null) {
      words.add("kubeconfig=" + kubeconfig.getKubeconfig().toStringUtf8());
    }
    return String.join(" ", words);
  }

  private static String reason(DisengageReason reason) {
    return reason.name().replace("DISENGAGE_REASON_", "");
  }
}
