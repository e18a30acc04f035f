package com.miloapis.discovery;

import java.util.List;
import java.util.Map;
import java.util.Optional;

/** What Milo's API server says of a request in the extra fields of its user. */
public final class Admission {
    private static final String PARENT = "iam.miloapis.com/parent-";

    private Admission() {}

    /**
     * Returns the project in whose control plane a user's request was sent, or nothing for the core API.
     *
     * @param extra {@code request.userInfo.extra} of an AdmissionReview
     */
    public static Optional<String> projectOf(Map<String, ? extends List<String>> extra) {
        boolean isProject = only(extra, "api-group").filter("resourcemanager.miloapis.com"::equals).isPresent()
                && only(extra, "type").filter("Project"::equals).isPresent();
        return isProject ? only(extra, "name").filter(name -> !name.isEmpty()) : Optional.empty();
    }

    private static Optional<String> only(Map<String, ? extends List<String>> extra, String field) {
        List<String> values = extra == null ? null : extra.get(PARENT + field);
        return values != null && values.size() == 1 ? Optional.ofNullable(values.get(0)) : Optional.empty();
    }
}
