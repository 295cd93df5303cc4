// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Cluster is a running control plane and its nodes. Its methods may be called in parallel.
type Cluster struct {
	cfg    Config
	net    network
	ca     *authority
	rest   *rest.Config
	client *kubernetes.Clientset

	out sync.Mutex // guards cfg.Out
}

// state is what the directory knows of a cluster, in cluster.json.
type state struct {
	Config  Config
	Network network
	Nodes   map[string]int // name -> index, from 1
}

// Start starts etcd, kube-apiserver and kube-controller-manager, and returns when
// pods can be created. Whatever a former cluster of this name left, running or
// killed halfway, is removed first. If it fails, nothing but logs is left. ctx
// limits the start, not the life of the cluster.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("starting a test cluster: this needs root, for namespaces, mounts and cgroups")
	}
	if err := cfg.checkPrograms(); err != nil {
		return nil, err
	}
	if err := claim(cfg); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := down(ctx, cfg); err != nil {
		return nil, fmt.Errorf("removing what a former test cluster %s left: %w", cfg.Name, err)
	}
	c := &Cluster{cfg: cfg}
	if err := c.start(ctx); err != nil {
		// Even if ctx is what ended it, nothing may be left behind.
		return nil, errors.Join(err, down(context.WithoutCancel(ctx), cfg))
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	if err := c.checkPorts(); err != nil {
		return err
	}
	if c.net, err = freeNetwork(c.cfg.Name); err != nil {
		return err
	}
	if err := os.RemoveAll(c.cfg.path("log")); err != nil {
		return fmt.Errorf("removing old logs: %w", err)
	}
	for _, dir := range []string{"run", "log", "kubeconfig", "images", "nodes"} {
		if err := os.MkdirAll(c.cfg.path(dir), 0o755); err != nil {
			return fmt.Errorf("making the state directory: %w", err)
		}
	}
	st := state{Config: c.cfg, Network: c.net, Nodes: map[string]int{}}
	if err := writeJSON(c.cfg.path("cluster.json"), st); err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	if err := c.step("certificates", c.writeCertificates); err != nil {
		return err
	}
	if err := c.step("images", c.writeImages); err != nil {
		return err
	}
	return c.startControlPlane(ctx)
}

func (c *Cluster) checkPorts() error {
	for i := range FreePort {
		l, err := net.Listen("tcp", c.cfg.addr(i))
		if err != nil {
			return fmt.Errorf("port %s is in use: stop what listens there, or choose another Config.PortBase (%w)", c.cfg.addr(i), err)
		}
		l.Close()
	}
	return nil
}

func (c *Cluster) writeImages() error {
	images, err := builtin(c.cfg.Bin)
	if err != nil {
		return err
	}
	for _, im := range append(images, c.cfg.Images...) {
		if err := im.WriteArchive(c.archive(im)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) archive(im Image) string {
	return c.cfg.path("images", fileName(im.Name)+".tar")
}

// fileName makes a user's or an image's name usable as a file's.
func fileName(name string) string { return strings.NewReplacer("/", "_", ":", "-").Replace(name) }

// Open returns the running cluster in cfg.Dir; of cfg only Dir and Out count.
func Open(cfg Config) (*Cluster, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("resolving %q: %w", cfg.Dir, err)
	}
	var st state
	if err := readJSON(filepath.Join(dir, "cluster.json"), &st); err != nil {
		return nil, fmt.Errorf("opening the test cluster in %s: is one running there? %w", dir, err)
	}
	st.Config.Dir, st.Config.Out = dir, cfg.Out
	if cfg, err = st.Config.complete(); err != nil {
		return nil, fmt.Errorf("opening the test cluster in %s: %w", dir, err)
	}
	c := &Cluster{cfg: cfg, net: st.Network}
	if p := c.host().process("kube-apiserver"); !p.Running() {
		return nil, fmt.Errorf("opening test cluster %s: its kube-apiserver does not run; start the cluster again (log: %s)", cfg.Name, p.Log)
	}
	if c.ca, err = loadAuthority(cfg.path("pki")); err != nil {
		return nil, err
	}
	return c, c.connect()
}

// connect makes the administrator's client. It has no rate limit of its own.
func (c *Cluster) connect() (err error) {
	if c.rest, err = clientcmd.BuildConfigFromFlags("", c.AdminKubeconfig()); err != nil {
		return fmt.Errorf("reading the administrator's kubeconfig: %w", err)
	}
	c.rest.QPS = -1
	if c.client, err = kubernetes.NewForConfig(c.rest); err != nil {
		return fmt.Errorf("making the administrator's client: %w", err)
	}
	return nil
}

// Stop removes the cluster as Down does.
func (c *Cluster) Stop(ctx context.Context) error { return Down(ctx, c.cfg) }

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.cfg.Name }

// Dir returns the state directory. Its log/ is kept when the cluster is stopped.
func (c *Cluster) Dir() string { return c.cfg.Dir }

// Port returns the port at this offset from Config.PortBase, for example for
// FreePort and those above it, which are the caller's.
func (c *Cluster) Port(offset int) int { return c.cfg.PortBase + offset }

// APIPort returns the port of kube-apiserver on 127.0.0.1.
func (c *Cluster) APIPort() int { return c.Port(portAPIServer) }

// Client returns an administrator's client without rate limit.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// RESTConfig returns a copy of the administrator's client configuration.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.rest) }

// AdminKubeconfig returns the path of the administrator's kubeconfig file.
func (c *Cluster) AdminKubeconfig() string { return c.cfg.path("admin.kubeconfig") }

// Kubeconfig signs a client certificate for any user and returns the path of a
// kubeconfig file with it. The user has the rights that RBAC gives to that name and its groups.
func (c *Cluster) Kubeconfig(user string, groups ...string) (string, error) {
	file := c.cfg.path("kubeconfig", fileName(user)+".kubeconfig")
	return file, c.ca.clientKubeconfig(file, c.cfg.serverURL(), user, groups...)
}

// ServiceAccountKubeconfig returns the path of a kubeconfig file with a fresh token
// of an existing ServiceAccount, so that a host process has exactly its rights. If
// node is not empty, the token is bound to that Node, as that of a pod there would be.
func (c *Cluster) ServiceAccountKubeconfig(ctx context.Context, namespace, name, node string) (string, error) {
	seconds := int64(lifetime.Seconds())
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	file := "sa_" + namespace + "_" + name
	if node != "" {
		n, err := c.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("binding a token to node %s: %w", node, err)
		}
		req.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: n.UID}
		file += "_" + node
	}
	got, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, req, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("requesting a token of ServiceAccount %s/%s: %w", namespace, name, err)
	}
	path := c.cfg.path("kubeconfig", file+".kubeconfig")
	return path, c.ca.kubeconfig(path, c.cfg.serverURL(), &clientcmdapi.AuthInfo{Token: got.Status.Token})
}

// Kubectl runs the cluster's kubectl as the administrator and returns its standard
// output; an error has its standard error.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.cfg.bin("kubectl"), append([]string{"--kubeconfig", c.AdminKubeconfig()}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return out, fmt.Errorf("running kubectl %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// StartProcess starts a program on the host, such as a scheduler, as a tracked
// process. It gets PATH, HOME and env, nothing of the caller's environment.
func (c *Cluster) StartProcess(name string, argv, env []string) (*Process, error) {
	return c.host().launch(name, argv, env)
}

// Process looks up a host process by name, the cluster's own among them (etcd,
// kube-apiserver, kube-controller-manager).
func (c *Cluster) Process(name string) *Process { return c.host().process(name) }

// Processes returns every tracked process of the host and of all nodes, whether it runs or not.
func (c *Cluster) Processes() ([]*Process, error) {
	all, err := c.host().processes()
	if err != nil {
		return nil, err
	}
	nodes, err := c.Nodes()
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		more, err := n.tracker().processes()
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return all, nil
}

// host is the tracker of host processes.
func (c *Cluster) host() *tracker {
	return &tracker{
		run: c.cfg.path("run"), logs: c.cfg.path("log"), mark: c.cfg.Name, bin: c.cfg.Bin,
		start: (*exec.Cmd).Start,
	}
}

// AddImage makes an image available on every node, present and future.
func (c *Cluster) AddImage(ctx context.Context, im Image) error {
	if err := im.WriteArchive(c.archive(im)); err != nil {
		return err
	}
	nodes, err := c.Nodes()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := n.importImages(ctx, c.archive(im)); err != nil {
			return err
		}
	}
	return nil
}

// Nodes returns the nodes, by index.
func (c *Cluster) Nodes() ([]*Node, error) {
	var st state
	if err := readJSON(c.cfg.path("cluster.json"), &st); err != nil {
		return nil, fmt.Errorf("reading the cluster's state: %w", err)
	}
	names := slices.SortedFunc(maps.Keys(st.Nodes), func(a, b string) int { return st.Nodes[a] - st.Nodes[b] })
	var nodes []*Node
	for _, name := range names {
		nodes = append(nodes, c.node(name, st.Nodes[name]))
	}
	return nodes, nil
}

// Node looks up a node by name.
func (c *Cluster) Node(name string) (*Node, error) {
	nodes, err := c.Nodes()
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("looking up node %s: test cluster %s has none of this name", name, c.cfg.Name)
}

// update changes the state on disk, alone among all processes.
func (c *Cluster) update(ctx context.Context, change func(*state) error) error {
	unlock, err := lock(ctx, c.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	var st state
	err = readJSON(c.cfg.path("cluster.json"), &st)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("changing test cluster %s: it has been stopped", c.cfg.Name)
	}
	if err != nil {
		return err
	}
	if err := change(&st); err != nil {
		return err
	}
	return writeJSON(c.cfg.path("cluster.json"), st)
}

// step does one step of a start and says how long it took.
func (c *Cluster) step(what string, do func() error) error {
	began := time.Now()
	if err := do(); err != nil {
		return err
	}
	c.out.Lock()
	defer c.out.Unlock()
	fmt.Fprintf(c.cfg.Out, "%-40s %5.1fs\n", what, time.Since(began).Seconds())
	return nil
}
