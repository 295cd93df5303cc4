// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/node"
)

// overheadTarget is what the agent may add, at the 99th percentile, to the time
// that NVML takes.
const overheadTarget = 50 * time.Millisecond

func named(slow bool) string {
	if slow {
		return "NVML 250/100 ms"
	}
	return "NVML 0 ms"
}

// latency starts one pod after the other in one place, with another profile each
// time, so that each needs one destruction and one creation. What is beyond their
// time is the agent's, and that of the model of kubelet.
//
// The next pod comes when the last one's slot is withdrawn. One that comes at once may
// be given that very slot, and is then held back for a second on purpose: the runtime
// might still see the slot's old CDI file. That is measured too, without a target.
func (b *bench) latency(slow bool) {
	b.inTurn(slow, false)
	b.inTurn(slow, true)
}

func (b *bench) inTurn(slow, atOnce bool) {
	n := b.node(1, slow)
	defer n.Close()
	pods, inNVML := 400, time.Duration(0)
	if slow {
		pods, inNVML = 100, createTime+destroyTime
	}
	var own []time.Duration
	sleeps, writes, cpu := sample(sleepLate), sample(b.writeSynced), b.processorTime(n)
	for i := range pods + 1 {
		p := n.Bind(fmt.Sprint("p", i), []string{"main=0:1g.5gb@0", "main=0:2g.10gb@0"}[i%2])
		p.Await(node.Running)
		if i > 0 { // before the first one there was nothing to destroy
			own = append(own, p.Took()-inNVML)
		}
		slots := p.Slots()
		p.Delete()
		if !atOnce {
			b.withdrawn(n, slots)
		}
	}
	late, waits, cpu := sleeps(), writes(), b.processorTime(n)-cpu
	got, p99 := percentiles(own)
	if atOnce {
		b.row(fmt.Sprintf("the same, each pod at once after the last, %s", named(slow)), got, "-", true)
		return
	}
	b.row(fmt.Sprintf("own time, bound to created, %d pods, p50 / p99, %s", pods, named(slow)), got,
		"p99 < "+overheadTarget.String(), p99 < overheadTarget)
	got, _ = percentiles(late)
	b.row("how late this machine woke a sleeper meanwhile, p50 / p99", got, "-", true)
	got, _ = percentiles(waits)
	b.row("how long its disk took for a small file meanwhile, p50 / p99", got, "-", true)
	b.row("the agent's processor time for a start, "+named(slow), round(cpu/time.Duration(pods+1)), "-", true)
}

// percentiles draws the 50th and the 99th, and returns the latter.
func percentiles(all []time.Duration) (drawn string, p99 time.Duration) {
	slices.Sort(all)
	p99 = all[(len(all)*99+99)/100-1]
	return fmt.Sprintf("%s / %s", round(all[len(all)/2]), round(p99)), p99
}

// sample measures again and again, until the function that it returns is called.
func sample(measure func() time.Duration) (end func() []time.Duration) {
	var all []time.Duration
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				all = append(all, measure())
			}
		}
	}()
	return func() []time.Duration {
		close(stop)
		<-done
		return all
	}
}

// sleepLate is by how much a short sleep is too long.
func sleepLate() time.Duration {
	began := time.Now()
	time.Sleep(time.Millisecond)
	return time.Since(began) - time.Millisecond
}

// writeSynced is how long a small file takes to the disk, of which the agent writes
// some for each pod. It does so at leisure, since it disturbs.
func (b *bench) writeSynced() time.Duration {
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	f, err := os.Create(filepath.Join(b.dir, "probe"))
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// processorTime is what the agent has used so far.
func (b *bench) processorTime(n *node.Node) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.Agent().PID()))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name before it may have spaces
	var user, system int64
	if fields := strings.Fields(rest); len(fields) > 12 {
		_, err = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	}
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * time.Second / 100 // the kernel's USER_HZ
}

// withdrawn waits until kubelet cannot give an ended pod's slots to another.
func (b *bench) withdrawn(n *node.Node, slots []string) {
	n.Await("the slots of ended pods to be withdrawn", func() error {
		healthy, _ := n.Kubelet.Slots()
		for _, slot := range slots {
			if slices.Contains(healthy, slot) {
				return fmt.Errorf("slot %s is offered", slot)
			}
		}
		return nil
	})
}

// together starts 7 pods on one GPU, and 56 on eight, at once.
func (b *bench) together(slow bool) {
	for _, gpus := range []int{1, 8} {
		n := b.node(gpus, slow)
		began := time.Now()
		var pods []*node.Pod
		for gpu := range gpus {
			for start := range 7 {
				pods = append(pods, n.Bind(fmt.Sprintf("p%d-%d", gpu, start), fmt.Sprintf("main=%d:1g.5gb@%d", gpu, start)))
			}
		}
		for _, p := range pods {
			p.Await(node.Running)
		}
		took := time.Since(began)
		slowest := time.Duration(0)
		if slow {
			slowest = 7 * createTime
		}
		limit := slowest + time.Second
		b.row(fmt.Sprintf("%d pods at once on %d GPUs, %s", len(pods), gpus, named(slow)), round(took),
			fmt.Sprintf("< %s (one GPU's time in NVML and 1 s)", limit), took < limit)
		if gpus == 8 {
			anonymous := b.anonymous(n)
			b.row(fmt.Sprintf("anonymous memory with 56 instances, %s", named(slow)), fmt.Sprintf("%.1f MiB", anonymous), "<= 40 MiB", anonymous <= 40)
		}
		n.Close()
	}
}

// warm starts pods in a place where the last one's instance is.
func (b *bench) warm(slow bool) {
	n := b.node(1, slow)
	defer n.Close()
	start := func(i int) {
		p := n.Bind(fmt.Sprint("p", i), "main=0:2g.10gb@0")
		p.Await(node.Running)
		p.Delete()
	}
	start(0)
	before := n.Dump().CallsByName[sim.CallCreateGPUInstance]
	const pods = 50
	for i := range pods {
		start(i + 1)
	}
	creates := n.Dump().CallsByName[sim.CallCreateGPUInstance] - before
	b.row(fmt.Sprintf("creations for %d pods that reuse a warm instance, %s", pods, named(slow)), fmt.Sprint(creates), "0", creates == 0)
}

// size is what must not grow.
type size struct {
	anonymous   float64 // MiB
	goroutines  int
	descriptors int
	files       int // of CDI
	journal     int64
	slots       int64
}

// growth starts pods in all 56 places of a node again and again.
func (b *bench) growth(slow bool, starts int) {
	address := b.freeAddress()
	n := b.node(8, slow, "--listen="+address)
	defer n.Close()
	began := time.Now()
	done, at := 0, map[int]size{}
	for _, until := range []int{starts / 10, starts} {
		b.cycle(n, until-done)
		done = until
		at[until] = b.settledSize(n, address)
	}
	early, late := at[starts/10], at[starts]
	rate := float64(starts) / time.Since(began).Seconds()
	b.row(fmt.Sprintf("%d pod starts on 56 places, %s", starts, named(slow)), fmt.Sprintf("%.0f/s", rate), "-", true)
	grown := func(what string, early, late, slack float64, unit string) {
		b.row(fmt.Sprintf("%s after %d and %d starts", what, starts/10, starts), fmt.Sprintf("%.4g and %.4g%s", early, late, unit),
			fmt.Sprintf("+ %.4g%s at most", slack, unit), late <= early+slack)
	}
	grown("anonymous memory", early.anonymous, late.anonymous, 8, " MiB")
	grown("goroutines", float64(early.goroutines), float64(late.goroutines), 10, "")
	grown("open files", float64(early.descriptors), float64(late.descriptors), 5, "")
	grown("CDI files", float64(early.files), float64(late.files), 0, "")
	grown("journal", float64(early.journal), float64(late.journal), 200, " bytes")
	grown("slots.json", float64(early.slots), float64(late.slots), 200, " bytes")
}

// cycle starts and ends pods in all places until there were so many.
func (b *bench) cycle(n *node.Node, starts int) {
	var places sync.WaitGroup
	next := make(chan int)
	for gpu := range 8 {
		for start := range 7 {
			place := fmt.Sprintf("main=%d:1g.5gb@%d", gpu, start)
			places.Go(func() {
				for i := range next {
					p := n.Bind(fmt.Sprint("p", i), place)
					p.Await(node.Running)
					p.Delete()
				}
			})
		}
	}
	for i := range starts {
		next <- i
	}
	close(next)
	places.Wait()
}

// settledSize waits until what ended pods have left is gone, and measures.
func (b *bench) settledSize(n *node.Node, address string) size {
	n.Await("the slots of ended pods to be gone", func() error {
		if left := n.Leftovers(); len(left) > 0 {
			return fmt.Errorf("%d CDI files are there", len(left))
		}
		if healthy, other := n.Kubelet.Slots(); len(healthy) != 56 || len(other) > 0 {
			return fmt.Errorf("kubelet sees %d healthy and %d other slots", len(healthy), len(other))
		}
		return nil
	})
	s := size{anonymous: b.anonymous(n), goroutines: b.metric(address, "go_goroutines"), files: len(n.Leftovers())}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.Agent().PID()))
	if err != nil {
		b.Fatal(err)
	}
	s.descriptors = len(descriptors)
	for file, size := range map[string]*int64{"journal.json": &s.journal, "slots.json": &s.slots} {
		info, err := os.Stat(filepath.Join(n.StateDir(), file))
		if err != nil {
			b.Fatal(err)
		}
		*size = info.Size()
	}
	return s
}

// anonymous is the agent's anonymous memory in MiB.
func (b *bench) anonymous(n *node.Node) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Agent().PID()))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	b.Fatal("the kernel does not tell RssAnon")
	return 0
}

// metric reads a metric without labels.
func (b *bench) metric(address, name string) int {
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("/metrics has no %s", name)
	return 0
}

func (b *bench) freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func round(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }
