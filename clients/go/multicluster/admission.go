package multicluster

import (
	"context"
	"errors"

	authenticationv1 "k8s.io/api/authentication/v1"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
)

// ErrNoProject is returned for a review of a write to Milo's core API, which is no project's.
var ErrNoProject = errors.New("the request is not to a project's control plane")

// The extra fields by which Milo names the control plane of a request.
const (
	parentGroup = "iam.miloapis.com/parent-api-group"
	parentType  = "iam.miloapis.com/parent-type"
	parentName  = "iam.miloapis.com/parent-name"
)

// ProjectOf returns the project in whose control plane a user's request was sent, or an empty string for Milo's core
// API. It reads what Milo's API server adds to the user of an AdmissionReview, and of requests to aggregated API servers.
func ProjectOf(user authenticationv1.UserInfo) string {
	if only(user, parentGroup) != "resourcemanager.miloapis.com" || only(user, parentType) != "Project" {
		return ""
	}
	return only(user, parentName)
}

func only(user authenticationv1.UserInfo, field string) string {
	if values := user.Extra[field]; len(values) == 1 {
		return values[0]
	}
	return ""
}

// ClusterFromAdmission returns the cluster of the project that a write is to, for the handler of a webhook that is
// registered once, in Milo's core API. It returns ErrNoProject for a write to the core API, and an error that is
// multicluster.ErrClusterNotFound for a project that is not engaged. On replicas that do not lead it needs OnAllReplicas.
func (p *Provider) ClusterFromAdmission(ctx context.Context, req admission.Request) (cluster.Cluster, error) {
	project := ProjectOf(req.UserInfo)
	if project == "" {
		return nil, ErrNoProject
	}
	return p.Get(ctx, multicluster.ClusterName(project))
}
