// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Group is a set of families that is switched on together.
type Group string

// The groups.
const (
	GroupPool      Group = "pool"      // few series for the whole cluster, and for each node
	GroupGPU       Group = "gpu"       // for each GPU
	GroupInstance  Group = "instance"  // for each instance: --monitor-instance-metrics
	GroupHAMi      Group = "hami"      // HAMi's names since 2.9: --monitor-hami-metrics
	GroupLegacy    Group = "legacy"    // HAMi's names up to 2.8: --monitor-legacy-metrics
	GroupDecisions Group = "decisions" // of this process, by the client library
)

// family is one metric of the fleet, a gauge: name, documentation and source in one
// place. docs/metrics.md has the same table, held to this one by a test.
type family struct {
	name   string
	help   string
	unit   string
	source string
	group  Group
	also   Group // a second switch that must be on, if any
	zone   bool  // HAMi's constant label
	labels []string
	each   func(s *scrape, emit func(value float64, values ...string))
}

// scrape is what one request for metrics looks at.
type scrape struct {
	view  *View
	now   time.Time
	bound func(types.UID) (time.Time, bool)

	configTrouble error // why the scheduler's newest device configuration is not in force
}

// write writes the families of the groups that are on.
func (s *scrape) write(t *text, on func(Group) bool) {
	for i := range families {
		f := &families[i]
		if on(f.group) && (f.also == "" || on(f.also)) {
			t.begin(f)
			f.each(s, t.sample)
		}
	}
}

// eachGPU calls do for all GPUs of nodes that can be read.
func (s *scrape) eachGPU(do func(n *Drawn, g *pool.GPUPicture, index string)) {
	for _, n := range s.view.Nodes {
		for i := range n.GPUs {
			do(n, &n.GPUs[i], strconv.Itoa(int(n.GPUs[i].Index)))
		}
	}
}

func (s *scrape) eachSpan(do func(n *Drawn, g *pool.GPUPicture, index string, span *pool.SpanPicture)) {
	s.eachGPU(func(n *Drawn, g *pool.GPUPicture, index string) {
		for i := range g.Spans {
			do(n, g, index, &g.Spans[i])
		}
	})
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// gpuState says in one word why a GPU takes instances or not.
func gpuState(g *pool.GPUPicture) string {
	switch {
	case g.Health != v1alpha1.Healthy:
		return "unhealthy"
	case g.Mode.Pending:
		return "pending"
	case g.Offered:
		return "offered"
	default:
		return "withheld"
	}
}

var conditions = []string{
	v1alpha1.ConditionReady, v1alpha1.ConditionConfigInvalid, v1alpha1.ConditionConfigMismatch, v1alpha1.ConditionConfigRemarks, v1alpha1.ConditionForeignInstances,
	v1alpha1.ConditionHardwareFailing, v1alpha1.ConditionJournalLost, v1alpha1.ConditionLibraryUnusable, v1alpha1.ConditionModePending,
}

var gpuLabels = []string{"node", "device_uuid", "device_index"}

// families in the order in which they are written.
var families = slices.Concat(poolFamilies, gpuFamilies, instanceFamilies, hamiFamilies, legacyFamilies)

var poolFamilies = []family{
	{
		name: "dynamig_pool_gpus", unit: "GPUs", group: GroupPool, labels: []string{"mode", "state"},
		help:   "GPUs by the mode in force and by whether they take new work: offered, unhealthy, pending (a mode change waits), withheld.",
		source: "GPUNode status.gpus[].mode, .health",
		each: func(s *scrape, emit func(float64, ...string)) {
			counts := map[[2]string]int{}
			for _, mode := range []string{v1alpha1.ModeMIG, v1alpha1.ModeHAMiCore} {
				for _, state := range []string{"offered", "unhealthy", "pending", "withheld"} {
					counts[[2]string{mode, state}] = 0
				}
			}
			s.eachGPU(func(_ *Drawn, g *pool.GPUPicture, _ string) { counts[[2]string{g.Mode.Current, gpuState(g)}]++ })
			emitSorted(counts, emit)
		},
	}, {
		name: "dynamig_pool_nodes", unit: "nodes", group: GroupPool, labels: []string{"state"},
		help:   "Nodes with a GPUNode: usable, unreadable because its report contradicts itself, or down: without a Node, a kubelet that reports, or an agent.",
		source: "GPUNodes, Nodes",
		each: func(s *scrape, emit func(float64, ...string)) {
			unreadable, down := 0, 0
			for _, n := range s.view.Nodes {
				switch {
				case n.Outage != "":
					down++
				case n.Problem != "":
					unreadable++
				}
			}
			emit(float64(down), "down")
			emit(float64(unreadable), "unreadable")
			emit(float64(len(s.view.Nodes)-unreadable-down), "usable")
		},
	}, {
		name: "dynamig_waiting_pods", unit: "pods", group: GroupPool, labels: []string{"reason"},
		help:   "GPU pods that cannot start yet, because they are on no node or somebody else has bound them, by kind of reason; a pod that several nodes refuse for different reasons counts under each.",
		source: "pods, condition PodScheduled",
		each: func(s *scrape, emit func(float64, ...string)) {
			counts := map[string]int{}
			for _, w := range s.view.Waiting {
				for _, c := range w.Classes {
					counts[c]++
				}
			}
			for _, c := range Classes() {
				emit(float64(counts[c]), c)
			}
		},
	}, {
		name: "dynamig_device_config_stale", unit: "0 or 1", group: GroupPool,
		help:   "1 while the newest device configuration of this scheduler is not in force (it has a mistake, or renames resources, which takes a restart) or the file cannot be followed. The log and an event of the scheduler's pod say which.",
		source: "the file that DynamicMIGArgs.deviceConfig names",
		each: func(s *scrape, emit func(float64, ...string)) {
			stale := 0.0
			if s.configTrouble != nil {
				stale = 1
			}
			emit(stale)
		},
	}, {
		name: "dynamig_node_config_generation", unit: "configurations", group: GroupPool, labels: []string{"node"},
		help:   "How many configurations the node's agent has put in force since it first ran there.",
		source: "GPUNode status.configGeneration",
		each: func(s *scrape, emit func(float64, ...string)) {
			for _, n := range s.view.Nodes {
				emit(float64(n.ConfigGeneration), n.Name)
			}
		},
	}, {
		name: "dynamig_node_condition", unit: "0 or 1", group: GroupPool, labels: []string{"node", "condition"},
		help:   "1 where the condition of the GPUNode is True: " + strings.Join(conditions, ", ") + ".",
		source: "GPUNode status.conditions",
		each: func(s *scrape, emit func(float64, ...string)) {
			for _, n := range s.view.Nodes {
				for _, name := range conditions {
					value := 0.0
					for _, c := range n.Conditions {
						if c.Type == name {
							value = one(c.Status == "True")
						}
					}
					emit(value, n.Name, name)
				}
			}
		},
	}, {
		name: "dynamig_node_gpus", unit: "GPUs", group: GroupPool, labels: []string{"node"},
		help:   "GPUs that the node's agent manages.",
		source: "GPUNode status.gpus",
		each: func(s *scrape, emit func(float64, ...string)) {
			for _, n := range s.view.Nodes {
				emit(float64(len(n.GPUs)), n.Name)
			}
		},
	}, {
		name: "dynamig_node_allocatable_devices", unit: "devices", group: GroupPool, labels: []string{"node"},
		help:   "Allocatable nvidia.com/gpu, or what the device configuration names instead, of the Node. Kubelet sets it to 0 when the agent is gone.",
		source: "Node status.allocatable",
		each: func(s *scrape, emit func(float64, ...string)) {
			for _, n := range s.view.Nodes {
				if n.Kubelet != nil {
					emit(float64(n.Kubelet.Devices), n.Name)
				}
			}
		},
	}, {
		name: "dynamig_node_placeable_instances", unit: "instances", group: GroupPool, labels: []string{"node", "profile"},
		help:   "How many instances of the profile would still fit on the node if it got no others. Profiles share space: do not add them up.",
		source: "node view, geometry.Catalogue.Count",
		each: func(s *scrape, emit func(float64, ...string)) {
			for _, n := range s.view.Nodes {
				var order []string
				counts := map[string]int{}
				for i := range n.GPUs {
					for _, f := range n.GPUs[i].Fits {
						if _, ok := counts[f.Profile]; !ok {
							order = append(order, f.Profile)
						}
						counts[f.Profile] += f.Count
					}
				}
				for _, profile := range order {
					emit(float64(counts[profile]), n.Name, profile)
				}
			}
		},
	}, {
		name: "dynamig_node_unprepared_pods", unit: "pods", group: GroupPool, labels: []string{"node", "phase"},
		help:   "Bound pods by what the agent says of them: Preparing, Failing (tried again), Refused (can never start).",
		source: "GPUNode status.pods",
		each: func(s *scrape, emit func(float64, ...string)) {
			for _, n := range s.view.Nodes {
				counts := map[v1alpha1.PodPhase]int{}
				for _, p := range n.Preparations {
					counts[p.Phase]++
				}
				for _, phase := range []v1alpha1.PodPhase{v1alpha1.PodPreparing, v1alpha1.PodFailing, v1alpha1.PodRefused} {
					emit(float64(counts[phase]), n.Name, string(phase))
				}
			}
		},
	}, {
		name: "dynamig_node_oldest_preparation_seconds", unit: "seconds", group: GroupPool, labels: []string{"node"},
		help:   "Age of the oldest binding on the node whose instances are not all live, or whose shares the agent is not done with; 0 when there is none.",
		source: "pods, GPUNode status.gpus[].instances, status.pods",
		each: func(s *scrape, emit func(float64, ...string)) {
			for _, n := range s.view.Nodes {
				oldest := 0.0
				for uid := range preparing(n) {
					if at, ok := s.bound(uid); ok {
						oldest = max(oldest, s.now.Sub(at).Seconds())
					}
				}
				emit(oldest, n.Name)
			}
		},
	},
}

// preparing are the pods on a node that wait for an instance or a share, once for each.
func preparing(n *Drawn) iter.Seq[types.UID] {
	return func(yield func(types.UID) bool) {
		for i := range n.GPUs {
			for _, s := range n.GPUs[i].Spans {
				if s.State == pool.SpanPreparing && !yield(s.Owner.UID) {
					return
				}
			}
			if n.GPUs[i].Shares == nil {
				continue
			}
			for _, s := range n.GPUs[i].Shares.Held {
				if s.State == pool.SpanPreparing && !yield(s.Owner.UID) {
					return
				}
			}
		}
	}
}

// emitSorted emits counts by two labels in their order.
func emitSorted(counts map[[2]string]int, emit func(float64, ...string)) {
	keys := make([][2]string, 0, len(counts))
	for k := range counts {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	for _, k := range keys {
		emit(float64(counts[k]), k[0], k[1])
	}
}
