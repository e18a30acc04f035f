package session

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	pb "go.miloapis.com/discovery/v1"
)

// casesFile is shared with the other clients. It is missing if the module is used outside of the repository.
var casesFile = filepath.Join("..", "..", "..", "testdata", "session_cases.json")

type sessionCase struct {
	Name  string `json:"name"`
	Steps []step `json:"steps"`
}

type step struct {
	Open   *string         `json:"open"`
	Batch  json.RawMessage `json:"batch"`
	News   []string        `json:"news"`
	Breaks string          `json:"breaks"`
	Lose   bool            `json:"lose"`
	State  *state          `json:"state"`
}

type state struct {
	View     []string `json:"view"`
	Revision string   `json:"revision"`
	Synced   bool     `json:"synced"`
	Source   string   `json:"source"`
	Pending  []string `json:"pending"`
}

func TestSessionPassesSharedCases(t *testing.T) {
	for _, each := range sharedCases(t) {
		t.Run(each.Name, func(t *testing.T) {
			var session Session
			for i, step := range each.Steps {
				run(t, &session, fmt.Sprintf("step %d", i+1), step)
			}
		})
	}
}

func sharedCases(t testing.TB) []sessionCase {
	t.Helper()
	content, err := os.ReadFile(casesFile)
	if os.IsNotExist(err) {
		t.Skipf("the shared cases exist only in the repository: %v", err)
	}
	var file struct {
		Cases []sessionCase `json:"cases"`
	}
	if err == nil {
		err = json.Unmarshal(content, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file.Cases
}

func run(t *testing.T, session *Session, at string, step step) {
	t.Helper()
	switch {
	case step.Open != nil:
		if revision := session.Open(); revision != *step.Open {
			t.Errorf("%s: resumes from %q, want %q", at, revision, *step.Open)
		}
	case step.Batch != nil:
		var batch pb.WatchClustersResponse
		if err := protojson.Unmarshal(step.Batch, &batch); err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		result, err := session.Receive(&batch)
		if step.Breaks != "" {
			if err == nil || !strings.Contains(err.Error(), step.Breaks) {
				t.Errorf("%s: the error is %v, want one with %q", at, err, step.Breaks)
			}
		} else if err != nil {
			t.Errorf("%s: %v", at, err)
		}
		if news := describe(session, result); step.News != nil && !slices.Equal(news, step.News) {
			t.Errorf("%s: reports %q, want %q", at, news, step.News)
		}
	case step.Lose:
		if news := describe(session, Result{Changes: session.LoseOwnership()}); !slices.Equal(news, step.News) {
			t.Errorf("%s: reports %q, want %q", at, news, step.News)
		}
	case step.State != nil:
		if got := stateOf(session); fmt.Sprint(got) != fmt.Sprint(*step.State) {
			t.Errorf("%s: the state is %+v, want %+v", at, got, *step.State)
		}
	default:
		t.Fatalf("%s is empty", at)
	}
}

func stateOf(session *Session) state {
	now := state{Revision: session.Revision(), Synced: session.Synced(), Pending: session.PendingSources()}
	for _, name := range slices.Sorted(maps.Keys(session.view)) {
		known := session.view[name]
		now.View = append(now.View, describeCluster(known.Cluster, "", "", known.Kubeconfig))
	}
	if source := session.Source(); source != nil {
		now.Source = strings.TrimPrefix(source.GetState().String(), "STATE_") + " " + source.GetReason()
	}
	return now
}

func describe(session *Session, result Result) []string {
	news := []string{}
	for _, change := range result.Changes {
		reason := strings.TrimPrefix(change.Reason.String(), "DISENGAGE_REASON_")
		if _, known := pb.DisengageReason_name[int32(change.Reason)]; !known || reason == "UNSPECIFIED" {
			reason = ""
		}
		cluster := describeCluster(change.Cluster, reason, change.Message, change.Kubeconfig)
		news = append(news, change.Kind.String()+" "+cluster)
	}
	if result.Completed {
		news = append(news, fmt.Sprintf("SYNCED %d", session.Len()))
	}
	return news
}

func describeCluster(cluster *pb.Cluster, reason, message string, kubeconfig *pb.Kubeconfig) string {
	words := []string{cluster.GetName()}
	add := func(format, value string) {
		if value != "" {
			words = append(words, fmt.Sprintf(format, value))
		}
	}
	add("uid=%s", cluster.GetUid())
	add("incarnation=%s", cluster.GetIncarnation())
	if cluster.GetSuspended() {
		words = append(words, "suspended")
	}
	if draining := cluster.GetDraining(); draining != nil {
		words = append(words, "draining="+strings.TrimPrefix(draining.GetReason().String(), "DISENGAGE_REASON_"))
	}
	add("reason=%s", reason)
	add("message=%q", message)
	add("kubeconfig=%s", string(kubeconfig.GetKubeconfig()))
	return strings.Join(words, " ")
}
