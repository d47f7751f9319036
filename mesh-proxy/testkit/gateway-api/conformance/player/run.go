package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Place is a network namespace that is there beforehand.
type Place struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Namespace whose pods may be here; empty: any.
	Namespace string `json:"namespace"`
	// Node that it belongs to, and that node's address.
	Node        string `json:"node"`
	NodeAddress string `json:"nodeAddress"`
	// Config of a proxy, for places of Gateways.
	Config map[string]any `json:"config"`
}

// Config is what the world is.
type Config struct {
	Kubeconfig string `json:"kubeconfig"`
	// Namespaces is the folder with the network namespaces.
	Namespaces string `json:"namespaces"`
	// Kubelet is where the API server asks for exec.
	Kubelet    string  `json:"kubelet"`
	Folder     string  `json:"folder"`
	EchoBasic  string  `json:"echoBasic"`
	MeshProxy  string  `json:"meshProxy"`
	Nameserver string  `json:"nameserver"`
	Class      string  `json:"class"`
	Ports      []int32 `json:"ports"`
	Pods       []Place `json:"pods"`
	Gateways   []Place `json:"gateways"`
}

const gatewayName = "gateway.networking.k8s.io/gateway-name"

type player struct {
	Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
	mu      sync.Mutex
	running map[types.NamespacedName]*instance
}

// instance is a pod that runs.
type instance struct {
	place   Place
	pod     *core.Pod
	process *os.Process
	said    *said
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("run FILE")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	p := &player{running: map[types.NamespacedName]*instance{}}
	if err := json.Unmarshal(text, &p.Config); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 100, 200
	p.client = kubernetes.NewForConfigOrDie(config)
	p.dynamic = dynamic.NewForConfigOrDie(config)
	failed := make(chan error, 1)
	go func() { failed <- p.kubelet() }()
	go p.gateways()
	go p.pods()
	return <-failed
}

func handlers[T any](each func(T), gone func(T)) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { each(o.(T)) },
		UpdateFunc: func(_, o any) { each(o.(T)) },
		DeleteFunc: func(o any) {
			if o, ok := o.(T); ok {
				gone(o)
			}
		},
	}
}

func (p *player) pods() {
	source := &cache.ListWatch{
		ListFunc: func(o meta.ListOptions) (r runtimeObject, err error) {
			return p.client.CoreV1().Pods("").List(context.Background(), o)
		},
		WatchFunc: func(o meta.ListOptions) (watch.Interface, error) {
			return p.client.CoreV1().Pods("").Watch(context.Background(), o)
		},
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source, ObjectType: &core.Pod{}, Handler: handlers(p.pod, p.stop),
	})
	informer.Run(nil)
}

func (p *player) pod(pod *core.Pod) {
	if pod.DeletionTimestamp != nil {
		p.stop(pod)
		now := int64(0)
		_ = p.client.CoreV1().Pods(pod.Namespace).Delete(context.Background(), pod.Name, meta.DeleteOptions{GracePeriodSeconds: &now})
		return
	}
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	p.mu.Lock()
	_, known := p.running[key]
	var found *instance
	if !known {
		found = p.place(pod)
		if found != nil {
			p.running[key] = found
		}
	}
	p.mu.Unlock()
	if found == nil {
		if !known {
			log.Printf("%s: no place is free", key)
		}
		return
	}
	go func() {
		if err := p.start(found); err != nil {
			log.Printf("%s: %v", key, err)
		}
	}()
}

func isGateway(pod *core.Pod) bool { return pod.Labels[gatewayName] != "" }

// place finds a free one; the caller holds the lock.
func (p *player) place(pod *core.Pod) *instance {
	places := p.Pods
	if isGateway(pod) {
		places = p.Gateways
	}
	own := slices.ContainsFunc(places, func(s Place) bool { return s.Namespace == pod.Namespace })
	for _, s := range places {
		wanted := s.Namespace == "" && !own || own && s.Namespace == pod.Namespace
		taken := false
		for _, i := range p.running {
			taken = taken || i.place.Name == s.Name
		}
		if wanted && !taken {
			return &instance{place: s, pod: pod, said: &said{}}
		}
	}
	return nil
}

func (p *player) stop(pod *core.Pod) {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i, ok := p.running[key]; ok {
		if i.process != nil {
			_ = i.process.Kill()
			_, _ = i.process.Wait()
		}
		delete(p.running, key)
	}
}

func (p *player) start(i *instance) error {
	pod, ctx := i.pod, context.Background()
	if pod.Spec.NodeName == "" {
		binding := &core.Binding{
			ObjectMeta: meta.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace},
			Target:     core.ObjectReference{Kind: "Node", Name: i.place.Node},
		}
		if err := p.client.CoreV1().Pods(pod.Namespace).Bind(ctx, binding, meta.CreateOptions{}); err != nil {
			return err
		}
	}
	argv, env, err := p.command(i)
	if err != nil {
		return err
	}
	if len(argv) > 0 {
		out, err := os.Create(filepath.Join(p.Folder, pod.Namespace+"."+pod.Name+".log"))
		if err != nil {
			return err
		}
		i.said.file = out
		process, err := inside(p.Namespaces, i.place.Name, argv, env, i.said, i.said)
		if err != nil {
			return err
		}
		p.mu.Lock()
		i.process = process.Process
		p.mu.Unlock()
	}
	if isGateway(pod) {
		// What a readiness probe does: without an address nobody counts on the pod.
		_, err := retried(func() (*http.Response, error) {
			response, err := http.Get("http://" + i.place.Address + ":15021/healthz/ready")
			if err == nil {
				_ = response.Body.Close()
				if response.StatusCode != http.StatusOK {
					err = errors.New(response.Status)
				}
			}
			return response, err
		})
		if err != nil {
			return err
		}
	}
	if err := p.ready(i); err != nil {
		return err
	}
	if isGateway(pod) {
		status, _ := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{
			"ingress": []map[string]any{{"ip": i.place.Address}}}}})
		_, err := p.client.CoreV1().Services(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, status, meta.PatchOptions{}, "status")
		return err
	}
	return nil
}

func (p *player) ready(i *instance) error {
	condition := func(kind string) map[string]any { return map[string]any{"type": kind, "status": "True"} }
	status, _ := json.Marshal(map[string]any{"status": map[string]any{
		"phase": "Running", "podIP": i.place.Address, "podIPs": []map[string]any{{"ip": i.place.Address}},
		"hostIP": i.place.NodeAddress, "hostIPs": []map[string]any{{"ip": i.place.NodeAddress}},
		"conditions": []map[string]any{condition("PodScheduled"), condition("Initialized"), condition("ContainersReady"), condition("Ready")},
	}})
	_, err := p.client.CoreV1().Pods(i.pod.Namespace).Patch(context.Background(), i.pod.Name, types.MergePatchType, status, meta.PatchOptions{}, "status")
	return err
}

// command is what the pod's container would run; nothing for images that are not played.
func (p *player) command(i *instance) ([]string, []string, error) {
	if isGateway(i.pod) {
		return p.proxy(i)
	}
	container := i.pod.Spec.Containers[0]
	env, err := p.environment(i, container)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case strings.Contains(container.Image, "echo-basic"):
		return []string{p.EchoBasic}, env, nil
	case strings.Contains(container.Image, "echo-advanced"):
		self, err := os.Executable()
		return append([]string{self, "echo", "--name=" + i.pod.Name}, container.Args...), env, err
	}
	return nil, nil, nil
}

func (p *player) proxy(i *instance) ([]string, []string, error) {
	config := map[string]any{}
	for k, v := range i.place.Config {
		config[k] = v
	}
	config["gateway"] = map[string]any{"labels": i.pod.Labels, "namespace": i.pod.Namespace}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(p.Folder, i.place.Name+".json")
	return []string{p.MeshProxy, "--config", file}, os.Environ(), os.WriteFile(file, text, 0o600)
}

// environment gives variables, and secrets as files; paths of theirs lead to these.
func (p *player) environment(i *instance, container core.Container) ([]string, error) {
	mounted := map[string]string{}
	for _, mount := range container.VolumeMounts {
		for _, volume := range i.pod.Spec.Volumes {
			if volume.Name != mount.Name {
				continue
			}
			folder := filepath.Join(p.Folder, i.pod.Namespace+"."+i.pod.Name, mount.Name)
			if err := p.files(i.pod.Namespace, volume, folder); err != nil {
				return nil, err
			}
			mounted[mount.MountPath] = folder
		}
	}
	env := os.Environ()
	for _, v := range container.Env {
		value := v.Value
		if v.ValueFrom != nil && v.ValueFrom.FieldRef != nil {
			value = map[string]string{"metadata.name": i.pod.Name, "metadata.namespace": i.pod.Namespace}[v.ValueFrom.FieldRef.FieldPath]
		}
		for at, folder := range mounted {
			if strings.HasPrefix(value, at+"/") {
				value = folder + strings.TrimPrefix(value, at)
			}
		}
		env = append(env, v.Name+"="+value)
	}
	return env, nil
}

func (p *player) files(namespace string, volume core.Volume, folder string) error {
	ctx, data, items := context.Background(), map[string][]byte{}, []core.KeyToPath{}
	switch {
	case volume.Secret != nil:
		secret, err := retried(func() (*core.Secret, error) {
			return p.client.CoreV1().Secrets(namespace).Get(ctx, volume.Secret.SecretName, meta.GetOptions{})
		})
		if err != nil {
			return err
		}
		data, items = secret.Data, volume.Secret.Items
	case volume.ConfigMap != nil:
		found, err := retried(func() (*core.ConfigMap, error) {
			return p.client.CoreV1().ConfigMaps(namespace).Get(ctx, volume.ConfigMap.Name, meta.GetOptions{})
		})
		if err != nil {
			return err
		}
		for k, v := range found.Data {
			data[k] = []byte(v)
		}
		items = volume.ConfigMap.Items
	}
	if len(items) == 0 {
		for k := range data {
			items = append(items, core.KeyToPath{Key: k, Path: k})
		}
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for _, item := range items {
		if err := os.WriteFile(filepath.Join(folder, item.Path), data[item.Key], 0o600); err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
	}
	return nil
}

var gatewayKind = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
