package com.miloapis.discovery;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;

class AdmissionTest {
    private static Map<String, List<String>> extra(String group, String type, String name) {
        return Map.of(
                "iam.miloapis.com/parent-api-group", List.of(group),
                "iam.miloapis.com/parent-type", List.of(type),
                "iam.miloapis.com/parent-name", List.of(name));
    }

    @Test
    void projectOfAReviewIsReadFromItsUser() {
        String group = "resourcemanager.miloapis.com";
        assertEquals(Optional.of("alpha"), Admission.projectOf(extra(group, "Project", "alpha")));
        assertEquals(Optional.empty(), Admission.projectOf(extra(group, "Organization", "acme")));
        assertEquals(Optional.empty(), Admission.projectOf(extra("example.com", "Project", "alpha")));
        assertEquals(Optional.empty(), Admission.projectOf(extra(group, "Project", "")));
        assertEquals(Optional.empty(), Admission.projectOf(Map.of()));
        assertEquals(Optional.empty(), Admission.projectOf(null));
    }
}
