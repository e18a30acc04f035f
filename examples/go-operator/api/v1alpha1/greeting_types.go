package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ConditionReady is the type of the condition that is true when the ConfigMap is up to date.
const ConditionReady = "Ready"

// GreetingSpec is the desired state of a Greeting.
type GreetingSpec struct {
	// Text is the text of the greeting.
	// +kubebuilder:validation:MinLength=1
	Text string `json:"text"`
}

// GreetingStatus is the observed state of a Greeting.
type GreetingStatus struct {
	// Conditions are the conditions of the greeting, such as Ready.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Greeting requests a ConfigMap with a greeting.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
type Greeting struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   GreetingSpec   `json:"spec"`
	Status GreetingStatus `json:"status,omitempty"`
}

// GreetingList is a list of greetings.
// +kubebuilder:object:root=true
type GreetingList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Greeting `json:"items"`
}
