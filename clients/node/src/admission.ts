const parent = "iam.miloapis.com/parent-";

/** The part of an AdmissionReview's request, or of a TokenReview's user, that names the project. */
export interface ReviewedUser {
  extra?: Record<string, string[]>;
}

/**
 * The project in whose control plane a user's request was sent, by what Milo's API server adds to the user
 * (`review.request.userInfo`); undefined for a request to the core API.
 */
export function projectOf(user: ReviewedUser | undefined): string | undefined {
  const only = (field: string): string | undefined => {
    const values = user?.extra?.[parent + field];
    return values?.length === 1 ? values[0] : undefined;
  };
  if (only("api-group") !== "resourcemanager.miloapis.com" || only("type") !== "Project") {
    return undefined;
  }
  return only("name") || undefined;
}
