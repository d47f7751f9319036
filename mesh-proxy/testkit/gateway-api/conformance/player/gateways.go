package main

import (
	"context"
	"log"
	"strconv"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

type runtimeObject = runtime.Object

// gateways gives each Gateway of the class a service of type LoadBalancer and a pod with a proxy, both called NAME-CLASS:
// the mesh itself deploys nothing.
func (p *player) gateways() {
	all := p.dynamic.Resource(gatewayKind).Namespace("")
	source := &cache.ListWatch{
		ListFunc:  func(o meta.ListOptions) (runtimeObject, error) { return all.List(context.Background(), o) },
		WatchFunc: func(o meta.ListOptions) (watch.Interface, error) { return all.Watch(context.Background(), o) },
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source, ObjectType: &unstructured.Unstructured{}, Handler: handlers(p.gateway, p.noGateway),
	})
	informer.Run(nil)
}

func (p *player) gateway(gateway *unstructured.Unstructured) {
	class, _, _ := unstructured.NestedString(gateway.Object, "spec", "gatewayClassName")
	if class != p.Class || gateway.GetDeletionTimestamp() != nil {
		return
	}
	ctx, namespace, name := context.Background(), gateway.GetNamespace(), gateway.GetName()+"-"+class
	labels := map[string]string{gatewayName: gateway.GetName()}
	about := meta.ObjectMeta{Name: name, Namespace: namespace, Labels: labels}
	service := &core.Service{ObjectMeta: about, Spec: core.ServiceSpec{Type: core.ServiceTypeLoadBalancer, Selector: labels}}
	for _, port := range p.Ports {
		service.Spec.Ports = append(service.Spec.Ports, core.ServicePort{Name: "p" + strconv.Itoa(int(port)), Port: port})
	}
	pod := &core.Pod{ObjectMeta: about, Spec: core.PodSpec{
		HostNetwork: true, Containers: []core.Container{{Name: "gateway", Image: "selvage/mesh-proxy"}}}}
	_, err := p.client.CoreV1().Services(namespace).Create(ctx, service, meta.CreateOptions{})
	if err == nil {
		_, err = retried(func() (*core.Pod, error) {
			return p.client.CoreV1().Pods(namespace).Create(ctx, pod, meta.CreateOptions{})
		})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		log.Printf("gateway %s/%s: %v", namespace, name, err)
	}
}

func (p *player) noGateway(gateway *unstructured.Unstructured) {
	ctx, name := context.Background(), gateway.GetName()+"-"+p.Class
	now := int64(0)
	_ = p.client.CoreV1().Services(gateway.GetNamespace()).Delete(ctx, name, meta.DeleteOptions{})
	_ = p.client.CoreV1().Pods(gateway.GetNamespace()).Delete(ctx, name, meta.DeleteOptions{GracePeriodSeconds: &now})
}

// retried tries for half a minute: service accounts of new namespaces and secrets of the same manifest come a moment later.
func retried[T any](f func() (T, error)) (T, error) {
	for i := 0; ; i++ {
		out, err := f()
		if err == nil || apierrors.IsAlreadyExists(err) || i == 300 {
			return out, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
