package multicluster_test

import (
	"context"
	"errors"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	mcr "sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery/multicluster"
)

func request(group, kind, name string) admission.Request {
	extra := map[string]authenticationv1.ExtraValue{
		"iam.miloapis.com/parent-api-group": {group},
		"iam.miloapis.com/parent-type":      {kind},
		"iam.miloapis.com/parent-name":      {name},
	}
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		UserInfo: authenticationv1.UserInfo{Username: "alice", Extra: extra},
	}}
}

func TestProjectOfAReviewIsReadFromItsUser(t *testing.T) {
	for _, test := range []struct {
		request admission.Request
		want    string
	}{
		{request("resourcemanager.miloapis.com", "Project", "alpha"), "alpha"},
		{request("resourcemanager.miloapis.com", "Organization", "acme"), ""},
		{request("example.com", "Project", "alpha"), ""},
		{admission.Request{}, ""},
	} {
		if got := multicluster.ProjectOf(test.request.UserInfo); got != test.want {
			t.Errorf("ProjectOf(%v) = %q, want %q", test.request.UserInfo, got, test.want)
		}
	}
}

func TestClusterFromAdmissionTellsUnknownProjectsFromTheCore(t *testing.T) {
	provider, err := multicluster.New(multicluster.Options{Address: "unix:///nowhere", ProjectRestConfig: &rest.Config{}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = provider.ClusterFromAdmission(t.Context(), request("resourcemanager.miloapis.com", "Project", "alpha"))
	if !errors.Is(err, mcr.ErrClusterNotFound) {
		t.Errorf("got %v for a project that is not engaged, want ErrClusterNotFound", err)
	}
	if _, err := provider.ClusterFromAdmission(t.Context(), admission.Request{}); !errors.Is(err, multicluster.ErrNoProject) {
		t.Errorf("got %v for the core API, want ErrNoProject", err)
	}
}

// A webhook that is registered once, in Milo's core API, for the writes of all projects.
func ExampleProvider_ClusterFromAdmission() {
	var provider *multicluster.Provider // the one that the manager follows

	quota := admission.HandlerFunc(func(ctx context.Context, req admission.Request) admission.Response {
		project, err := provider.ClusterFromAdmission(ctx, req)
		switch {
		case errors.Is(err, multicluster.ErrNoProject), errors.Is(err, mcr.ErrClusterNotFound):
			return admission.Allowed("") // no project of this operator
		case err != nil:
			return admission.Errored(500, err) // the API server applies the failure policy
		}
		if project.GetAPIReader() == nil {
			return admission.Denied("the quota of this project is used up")
		}
		return admission.Allowed("")
	})
	_ = admission.Webhook{Handler: quota} // mgr.GetLocalManager().GetWebhookServer().Register("/quota", &...)
}
