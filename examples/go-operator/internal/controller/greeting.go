// Package controller contains the controllers of the example operator.
package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mccontroller "sigs.k8s.io/multicluster-runtime/pkg/controller"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery"
	discoverymc "go.miloapis.com/discovery/multicluster"
	"go.miloapis.com/discovery/multicluster/example/api/v1alpha1"
)

// Finalizer blocks the deletion of a Greeting until its resources are cleaned up.
const Finalizer = "example.miloapis.com/greeting"

// Projects provides the daemon's information about projects. *discoverymc.Provider implements it.
type Projects interface {
	Info(multicluster.ClusterName) (discovery.Cluster, bool)
}

// GreetingReconciler reconciles the Greetings of all projects.
type GreetingReconciler struct {
	Manager  mcmanager.Manager
	Projects Projects
	// CleanUp removes the resources that belong to a Greeting outside of its project.
	CleanUp func(ctx context.Context, project, name string) error
}

// SetupWithManager adds the controller to the manager. It reconciles only in clusters that the provider owns, and draining
// clusters are released when their reconciles have returned.
func (r *GreetingReconciler) SetupWithManager(provider *discoverymc.Provider, options mccontroller.Options) error {
	return mcbuilder.ControllerManagedBy(r.Manager).Named("greeting").
		For(&v1alpha1.Greeting{}).
		Owns(&corev1.ConfigMap{}).
		WithOptions(options).
		Complete(discoverymc.Reconciler(provider, &v1alpha1.Greeting{}, mcreconcile.Reconciler(r)))
}

// Reconcile applies the ConfigMap of a Greeting, or cleans up if the Greeting is being deleted.
func (r *GreetingReconciler) Reconcile(ctx context.Context, request mcreconcile.Request) (ctrl.Result, error) {
	// Look up the cluster by the name in the request: each project has its own client.
	cl, err := r.Manager.GetCluster(ctx, request.ClusterName)
	if err != nil {
		return ctrl.Result{}, err
	}
	greeting := &v1alpha1.Greeting{}
	if err := cl.GetClient().Get(ctx, request.NamespacedName, greeting); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !greeting.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, r.remove(ctx, cl.GetClient(), request.ClusterName, greeting)
	}
	if controllerutil.AddFinalizer(greeting, Finalizer) {
		if err := cl.GetClient().Update(ctx, greeting); err != nil {
			return ctrl.Result{}, fmt.Errorf("add the finalizer: %w", err)
		}
	}
	before := greeting.DeepCopy()
	failed := r.apply(ctx, cl.GetClient(), request.ClusterName, greeting)
	condition := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Greeted", ObservedGeneration: greeting.Generation,
	}
	if failed != nil {
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, "Failed", failed.Error()
	}
	meta.SetStatusCondition(&greeting.Status.Conditions, condition)
	if !equality.Semantic.DeepEqual(before.Status, greeting.Status) {
		if err := cl.GetClient().Status().Update(ctx, greeting); err != nil {
			return ctrl.Result{}, fmt.Errorf("update the status: %w", err)
		}
	}
	return ctrl.Result{}, failed
}

func (r *GreetingReconciler) apply(ctx context.Context, c client.Client, project multicluster.ClusterName, greeting *v1alpha1.Greeting) error {
	made := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: greeting.Namespace, Name: greeting.Name}}
	result, err := controllerutil.CreateOrUpdate(ctx, c, made, func() error {
		known, _ := r.Projects.Info(project)
		made.Data = map[string]string{"text": greeting.Spec.Text, "project": project.String(), "organization": known.Organization}
		return controllerutil.SetControllerReference(greeting, made, c.Scheme())
	})
	if err != nil {
		return fmt.Errorf("apply the ConfigMap: %w", err)
	}
	log.FromContext(ctx).V(1).Info("ConfigMap applied", "result", result)
	return nil
}

func (r *GreetingReconciler) remove(ctx context.Context, c client.Client, project multicluster.ClusterName, greeting *v1alpha1.Greeting) error {
	if !controllerutil.ContainsFinalizer(greeting, Finalizer) {
		return nil
	}
	if err := r.CleanUp(ctx, project.String(), greeting.Name); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	controllerutil.RemoveFinalizer(greeting, Finalizer)
	if err := c.Update(ctx, greeting); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove the finalizer: %w", err)
	}
	return nil
}
