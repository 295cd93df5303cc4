// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
)

func fleet(t testing.TB, specs ...string) *Fleet {
	t.Helper()
	f, err := ParseFleet(specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// trace reads lines under the header arrival,duration,devices,profile,gpumem,gpucores.
func trace(t testing.TB, f *Fleet, lines ...string) []Job {
	t.Helper()
	text := "arrival,duration,devices,profile,gpumem,gpucores\n" + strings.Join(lines, "\n")
	tr, err := ReadTrace(strings.NewReader(text), "test.csv", CSV, f)
	if err != nil {
		t.Fatal(err)
	}
	return tr.Jobs
}

// replayed runs with a clock on which each decision takes 50 ns.
func replayed(t testing.TB, f *Fleet, jobs []Job, opts Options) *Result {
	t.Helper()
	ticks := 0
	opts.clock = func() time.Time { ticks++; return time.Unix(0, int64(50*ticks)) }
	r, err := Run(context.Background(), f, jobs, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// same compares figures up to rounding.
func same(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-9 {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// TestLossByHand: one GPU of 8 memory and 7 compute slices.
//
//	t     0      2      4      6      8
//	4g    ############################ ..10
//	3g           ##############
//	1g                  rejected
//	2g                                # ..12
func TestLossByHand(t *testing.T) {
	f := fleet(t, "1x1xH100-80GB")
	jobs := trace(t, f, "0,10,,4g.40gb,,", "2,4,,3g.40gb,,", "4,10,,1g.10gb,,", "8,4,,2g.20gb,,")
	for _, policy := range []string{Ours, HAMi, FirstFit, BestFit, FGD, Repack} {
		t.Run(policy, func(t *testing.T) {
			r := replayed(t, f, jobs, Options{Policy: policy})
			if r.Jobs != 4 || r.Accepted != 3 || r.Rejected != 1 || r.Impossible != 0 || r.Oversize != 0 || r.GPUsPeak != 1 {
				t.Errorf("counts are wrong: %+v", r)
			}
			same(t, "offered", r.OfferedSliceSeconds, 4*10+4*4+1*10+2*4)
			same(t, "accepted", r.AcceptedSliceSeconds, 4*10+4*4+2*4)
			same(t, "utilisation", r.Utilisation, (4*8+4*4)/float64(8*8))
			same(t, "compute utilisation", r.ComputeUtilisation, (4*8+3*4)/float64(7*8))
			same(t, "utilisation at the end", r.UtilisationAtEnd, 6.0/8)
			same(t, "GPUs on", r.GPUsOn, 1)
			same(t, "ns per decision", r.NsPerDecision, 50)
			if r.Decisions != 4 {
				t.Errorf("%d decisions, want 4", r.Decisions)
			}
			if policy == Repack {
				if r.Stranded != nil {
					t.Errorf("the bound has %v stranded, and it has no placements", *r.Stranded)
				}
				return
			}
			same(t, "stranded", *r.Stranded, 0) // what is free is always a whole half
		})
	}
}

// TestWarmup: the same, measured from the second arrival on.
func TestWarmup(t *testing.T) {
	f := fleet(t, "1x1xH100-80GB")
	jobs := trace(t, f, "0,10,,4g.40gb,,", "2,4,,3g.40gb,,", "4,10,,1g.10gb,,", "8,4,,2g.20gb,,")
	r := replayed(t, f, jobs, Options{Warmup: 0.25})
	if r.Jobs != 3 || r.Accepted != 2 || r.Rejected != 1 {
		t.Errorf("counts are wrong: %+v", r)
	}
	same(t, "offered", r.OfferedSliceSeconds, 4*4+1*10+2*4)
	same(t, "utilisation", r.Utilisation, (4*6+4*4)/float64(8*6))
}

// TestStrandedByHand: three 2g leave slices 6 and 7, where none can lie; from 4 on
// one is gone. Two GPUs, of which the second is never used.
func TestStrandedByHand(t *testing.T) {
	f := fleet(t, "2x1xH100-80GB")
	jobs := trace(t, f, "0,4,,2g.20gb,,", "0,,,2g.20gb,,", "0,,,2g.20gb,,", "8,,,2g.20gb,,")
	r := replayed(t, f, jobs, Options{})
	// Free: 2 + 8 for four seconds, then 4 + 8. Stranded: 6 and 7 of both GPUs.
	same(t, "stranded", *r.Stranded, (4*4+4*4)/float64(4*10+4*12))
	same(t, "utilisation", r.Utilisation, (4*6+4*4)/float64(8*16))
	same(t, "GPUs on", r.GPUsOn, 1)
	same(t, "offered", r.OfferedSliceSeconds, 2*4+2*8+2*8) // those that run forever, up to the end
	if r.GPUsPeak != 1 {
		t.Errorf("%d GPUs at most, want 1", r.GPUsPeak)
	}
}

// TestQueueByHand: a GPU of 4 slices. The 4g waits; the 1g, which came later, does
// not; the last job never ends, so that the whole GPU that came after it never
// starts.
//
//	t     0 1 2     6     10    15
//	2g    ##################
//	4g      . . . . . . . . ######
//	1g        #######
//	1g                            ####>
//	4g                            never
func TestQueueByHand(t *testing.T) {
	f := fleet(t, "1x1xA30-24GB")
	jobs := trace(t, f, "0,10,,2g.12gb,,", "1,5,,4g.24gb,,", "2,4,,1g.6gb,,", "11,,,1g.6gb,,", "12,5,,4g.24gb,,")
	for _, policy := range []string{Ours, Templates, HAMi, FirstFit, BestFit, FGD} {
		t.Run(policy, func(t *testing.T) {
			if policy == Templates { // cannot give a 1g beside a 2g
				jobs := append(slices.Clone(jobs[:2]), jobs[3:]...)
				r := replayed(t, f, jobs, Options{Policy: policy, Mode: Queue})
				same(t, "mean wait", r.WaitMean, (0+9+4)/3.0)
				return
			}
			r := replayed(t, f, jobs, Options{Policy: policy, Mode: Queue})
			if r.Accepted != 4 || r.Rejected != 1 || r.Impossible != 0 {
				t.Errorf("counts are wrong: %+v", r)
			}
			same(t, "mean wait", r.WaitMean, (0+9+0+4)/4.0)
			same(t, "median wait", r.WaitP50, 0)
			same(t, "95th percentile", r.WaitP95, 9)
			same(t, "99th percentile", r.WaitP99, 9)
			same(t, "utilisation", r.Utilisation, (2*10+1*4+4*5)/float64(4*15))
		})
	}
	if r := replayed(t, f, jobs, Options{}); r.Accepted != 3 || r.WaitMean != 0 {
		t.Errorf("in mode loss %d are accepted and wait %v, want 3 and no wait", r.Accepted, r.WaitMean)
	}
}

// TestSeveralDevicesAreOnOneNode: two whole GPUs are free, on different nodes.
func TestSeveralDevicesAreOnOneNode(t *testing.T) {
	f := fleet(t, "2x2xA30-24GB")
	jobs := trace(t, f, "0,,,4g.24gb,,", "1,,2,,,", "2,,2,,,", "3,,3,,,")
	for _, policy := range []string{Ours, Templates, HAMi, FirstFit, BestFit, FGD} {
		r := replayed(t, f, jobs, Options{Policy: policy})
		if r.Accepted != 2 || r.Rejected != 2 || r.Impossible != 1 {
			t.Errorf("%s: accepted %d, rejected %d of which impossible %d; want 2, 2, 1", policy, r.Accepted, r.Rejected, r.Impossible)
		}
		same(t, policy+": utilisation at the end", r.UtilisationAtEnd, 12.0/16)
	}
}

// TestOversizeUsesWhatIsNeeded: beside a 3g the file's layouts have nothing but
// another 3g, which a job of 9000 MiB may get; it uses one slice of it.
func TestOversizeUsesWhatIsNeeded(t *testing.T) {
	f, err := ParseFleet([]string{"1x1xH100-80GB"}, deviceConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	jobs := trace(t, f, "0,,,3g.40gb,,", "1,3,,,9000,")
	for _, policy := range []string{Ours, Templates, FirstFit, BestFit, FGD} {
		r := replayed(t, f, jobs, Options{Policy: policy})
		if r.Accepted != 2 || r.Oversize != 1 {
			t.Errorf("%s: accepted %d with %d oversize, want 2 with 1", policy, r.Accepted, r.Oversize)
		}
		same(t, policy+": utilisation at the end", r.UtilisationAtEnd, 5.0/8)
		same(t, policy+": accepted", r.AcceptedSliceSeconds, 4*1+1*3)
		if policy == Templates {
			continue // HAMi cannot be told
		}
		if r := replayed(t, f, jobs, Options{Policy: policy, NoOversize: true}); r.Accepted != 1 || r.Impossible != 0 {
			t.Errorf("%s without oversize: accepted %d, want 1", policy, r.Accepted)
		}
	}
}

// TestModelsOfOneFleet: where one model is full, another answers.
func TestModelsOfOneFleet(t *testing.T) {
	f := fleet(t, "1x1xA30-24GB", "1x1xH100-80GB")
	jobs := trace(t, f, "0,,,4g.24gb,,", "1,2,,,5000,", "3,,,,200000,")
	for _, policy := range []string{Ours, Templates, HAMi, FirstFit, BestFit, FGD} {
		r := replayed(t, f, jobs, Options{Policy: policy})
		if r.Accepted != 2 || r.Rejected != 1 || r.Impossible != 1 {
			t.Errorf("%s: accepted %d, rejected %d of which impossible %d; want 2, 1, 1", policy, r.Accepted, r.Rejected, r.Impossible)
		}
		same(t, policy+": utilisation", r.Utilisation, (4*3+1*2)/float64(12*3))
	}
}

func deviceConfig(t *testing.T) *config.Device {
	t.Helper()
	text, err := os.ReadFile("testdata/device-config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	device, err := config.ParseDevice("device-config.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	return device
}

// TestHAMiByHand: fullest node, emptiest GPU, 1g and 3g high, others low.
func TestHAMiByHand(t *testing.T) {
	f := fleet(t, "2x2xH100-80GB")
	got := spots(t, f, HAMi, "0,,,1g.10gb,,", "1,,,2g.20gb,,", "2,,,3g.40gb,,", "3,,,1g.20gb,,", "4,,,4g.40gb,,")
	want := []string{
		"0:1g.10gb@6", // all are empty: the first
		"1:2g.20gb@0", // the first node is fuller, its second GPU emptier
		"0:3g.40gb@0", // GPU 0 is emptier than 1; the upper half is taken
		"1:1g.20gb@6", // now GPU 1 is; high, as any 1g
		"2:4g.40gb@0", // none on the first node
	}
	if !slices.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
}

// TestHAMiCountsMoreThanMemory: three 1g fill a GPU more than one 4g, but not its memory.
func TestHAMiCountsMoreThanMemory(t *testing.T) {
	for policy, want := range map[string]string{HAMi: "0:1g.10gb@6", HAMiByMemory: "1:1g.10gb@3"} {
		got := spots(t, fleet(t, "1x2xH100-80GB"), policy,
			"0,,,4g.40gb,,", "1,,,1g.10gb,,", "2,,,1g.10gb,,", "3,,,1g.10gb,,", "4,,,1g.10gb,,")
		if got[4] != want {
			t.Errorf("%s placed %v, want the last at %s", policy, got, want)
		}
	}
}

// TestTemplatesByHand: the first layout with enough memory, kept while in use.
func TestTemplatesByHand(t *testing.T) {
	f := fleet(t, "1x1xH100-80GB")
	got := spots(t, f, Templates,
		"0,5,,2g.20gb,,", "1,5,,3g.40gb,,", "2,5,,1g.10gb,,", "3,5,,1g.10gb,,", // cut as 1g + 3 x 2g: no 3g; the second 1g gets a 2g
		"10,5,,3g.40gb,,", "11,5,,2g.20gb,,", "12,2,,1g.10gb,,", // idle, then 2 x 3g
		"20,,,4g.40gb,,", "21,,,1g.10gb,,") // no layout has a 4g
	want := []string{"0:2g.20gb@0", "-", "0:1g.10gb@6", "0:2g.20gb@2", "0:3g.40gb@0", "0:3g.40gb@4", "-", "0:7g.80gb@0", "-"}
	if !slices.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
}

// spots lists where each job was placed, "-" for none.
func spots(t *testing.T, f *Fleet, policy string, lines ...string) []string {
	t.Helper()
	jobs := trace(t, f, lines...)
	got := make([]string, len(jobs))
	replayed(t, f, jobs, Options{Policy: policy, watch: func(e event, job int, spots []Spot) {
		switch {
		case e == rejected:
			got[job] = "-"
		case e == started:
			for _, s := range spots {
				p, _ := f.models[f.gpus[s.GPU].model].catalogue.Model().Profile(s.Profile)
				got[job] += fmt.Sprintf("%d:%s@%d", s.GPU, p.Name, s.Start)
			}
		}
	}})
	return got
}

// TestEveryStepIsLegal replays random jobs on a mixed fleet, without and with a
// device configuration, by every policy in both modes, and rebuilds from the steps
// alone what lies where (I1, I2).
func TestEveryStepIsLegal(t *testing.T) {
	for name, device := range map[string]*config.Device{"hardware": nil, "templates and allowlist": deviceConfig(t)} {
		f, err := ParseFleet([]string{"2x3xH100-80GB", "1x2xA30-24GB", "1x2xA100-40GB", "1x1xRTX-PRO-6000-96GB"}, device)
		if err != nil {
			t.Fatal(err)
		}
		jobs := randomJobs(400, 7)
		for _, policy := range Policies() {
			if policy == Repack {
				continue // of one model only; see below
			}
			for _, mode := range []Mode{Loss, Queue} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, policy, mode), func(t *testing.T) { checkSteps(t, f, jobs, policy, mode) })
			}
		}
	}
	f := fleet(t, "3x2xH100-80GB")
	for _, policy := range Policies() {
		for _, mode := range []Mode{Loss, Queue} {
			t.Run(fmt.Sprintf("one model/%s/%s", policy, mode), func(t *testing.T) { checkSteps(t, f, randomJobs(400, 8), policy, mode) })
		}
	}
}

func randomJobs(n int, seed uint64) []Job {
	chance := rand.New(rand.NewPCG(seed, 1))
	wants := []geometry.Want{
		{MemoryMiB: 4000}, {MemoryMiB: 9000}, {MemoryMiB: 12000}, {MemoryMiB: 30000}, {MemoryMiB: 70000}, {MemoryMiB: 200000},
		{Cores: 14}, {Cores: 40}, {Full: true}, {MemoryMiB: 9000, Cores: 50}, {Profile: "1g.10gb+me"},
	}
	var jobs []Job
	at := 0.0
	for range n {
		at += float64(chance.IntN(2)) // often at the same moment
		j := Job{Arrival: at, Duration: float64(chance.IntN(20)), Devices: 1, Want: wants[chance.IntN(len(wants))]}
		if chance.IntN(4) == 0 {
			j.Devices = 1 + chance.IntN(3)
		}
		jobs = append(jobs, j)
	}
	return jobs
}

func checkSteps(t *testing.T, f *Fleet, jobs []Job, policy string, mode Mode) {
	layouts := make([]geometry.Layout, len(f.gpus))
	state := make([]string, len(jobs))
	counts := map[event]int{}
	watch := func(e event, job int, spots []Spot) {
		counts[e]++
		if want := map[event]string{started: "", rejected: "", ended: "running"}[e]; state[job] != want {
			t.Fatalf("job %d is %q and then %d", job, state[job], e)
		}
		state[job] = map[event]string{started: "running", rejected: "gone", ended: "gone"}[e]
		if policy == Repack || e == rejected {
			return
		}
		if len(spots) != jobs[job].Devices {
			t.Fatalf("job %d wants %d devices and has %v", job, jobs[job].Devices, spots)
		}
		for _, s := range spots {
			if f.gpus[s.GPU].node != f.gpus[spots[0].GPU].node {
				t.Fatalf("job %d is on two nodes: %v", job, spots)
			}
			l := &layouts[s.GPU]
			if e == ended {
				*l = slices.DeleteFunc(*l, func(p geometry.Placed) bool { return p == s.Placed })
				continue
			}
			*l = append(*l, s.Placed)
			slices.SortFunc(*l, func(a, b geometry.Placed) int { return a.Start - b.Start })
			catalogue := f.models[f.gpus[s.GPU].model].catalogue
			if err := l.Check(catalogue.Model()); err != nil {
				t.Fatal(err)
			}
			suits(t, catalogue, jobs[job].Want, s, policy)
		}
	}
	r := replayed(t, f, jobs, Options{Policy: policy, Mode: mode, watch: watch})
	if r.Accepted+r.Rejected != len(jobs) || counts[started] != r.Accepted || counts[rejected] != r.Rejected {
		t.Errorf("%d jobs, %d accepted, %d rejected; seen %v", len(jobs), r.Accepted, r.Rejected, counts)
	}
	if mode == Queue && r.Rejected != r.Impossible {
		t.Errorf("%d jobs were rejected, of which %d are impossible: some never started", r.Rejected, r.Impossible)
	}
	if r.AcceptedSliceSeconds > r.OfferedSliceSeconds || r.Utilisation > 1 || r.Utilisation <= 0 {
		t.Errorf("figures make no sense: %+v", r)
	}
	again := replayed(t, f, jobs, Options{Policy: policy, Mode: mode})
	if !reflect.DeepEqual(r, again) {
		t.Errorf("a second time it is %+v, and was %+v", again, r)
	}
}

// suits checks that a job got what it asked for.
func suits(t *testing.T, c *geometry.Catalogue, w geometry.Want, s Spot, policy string) {
	t.Helper()
	p, _ := c.Model().Profile(s.Profile)
	memory := p.MemoryMiB
	for _, e := range c.Entries() {
		if e.Profile == s.Profile {
			memory = max(memory, e.MemoryMiB) // the file's contract
		}
	}
	switch {
	case memory < w.MemoryMiB,
		100*p.ComputeSlices/c.Model().ComputeSlices() < w.Cores,
		w.Full && p.Size != c.Model().MemorySlices(),
		w.Profile != "" && p.Name != w.Profile && policy != Templates:
		t.Fatalf("%+v got %s of %s", w, p.Name, c.Model().Name())
	}
}

// TestBoundBoundsEveryPolicy: the same first arrivals, none of which ends.
func TestBoundBoundsEveryPolicy(t *testing.T) {
	f := fleet(t, "2x4xH100-80GB")
	for seed := range uint64(20) {
		chance := rand.New(rand.NewPCG(seed, 3))
		var jobs []Job
		for i := range 60 {
			size := []string{"7g.80gb", "4g.40gb", "3g.40gb", "2g.20gb", "1g.20gb", "1g.10gb"}[chance.IntN(6)]
			jobs = append(jobs, Job{Arrival: float64(i), Duration: math.Inf(1), Devices: 1, Want: geometry.Want{Profile: size}})
		}
		first := func(policy string) int { // jobs before the first rejection
			n := len(jobs)
			replayed(t, f, jobs, Options{Policy: policy, watch: func(e event, job int, _ []Spot) {
				if e == rejected {
					n = min(n, job)
				}
			}})
			return n
		}
		most := first(Repack)
		for _, policy := range Policies() {
			if got := first(policy); got > most {
				t.Errorf("seed %d: %s rejects job %d first, the bound job %d", seed, policy, got, most)
			}
		}
	}
}

func TestRunRefuses(t *testing.T) {
	f := fleet(t, "1x1xA30-24GB")
	jobs := trace(t, f, "0,1,,1g.6gb,,")
	for want, opts := range map[string]Options{
		`mode is "lose"; use loss or queue`:         {Mode: "lose"},
		"warmup is 1; want a part":                  {Warmup: 1},
		`policy "best" is not known; use one of`:    {Policy: "best"},
		"there is no exact bound for A30-24GB":      {Policy: Repack},
		"the replay was stopped by the test itself": {Policy: FirstFit, Progress: nil},
	} {
		ctx, cancel := context.WithCancelCause(context.Background())
		if opts.Policy == FirstFit {
			cancel(fmt.Errorf("the replay was stopped by the test itself"))
		}
		_, err := Run(ctx, f, jobs, opts)
		cancel(nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
	if _, err := Run(context.Background(), fleet(t, "1x1xH100-80GB", "1x1xH200-141GB"),
		trace(t, fleet(t, "1x1xH100-80GB"), "0,1,,,12000,"), Options{Policy: Repack}); err == nil || !strings.Contains(err.Error(), "different profiles") {
		t.Errorf("12000 MiB are 1g.20gb of an H100 and 1g.18gb of an H200; the bound says %v", err)
	}
}

// TestResultNames pins the names that scripts read.
func TestResultNames(t *testing.T) {
	f := fleet(t, "1x1xH100-80GB")
	text, err := json.MarshalIndent(replayed(t, f, trace(t, f, "0,2,,4g.40gb,,", "1,1,,7g.80gb,,"), Options{}), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/result.json")
	if err != nil {
		t.Fatal(err)
	}
	if string(text)+"\n" != string(want) {
		t.Errorf("the result is\n%s\nwant\n%s", text, want)
	}
}

// TestOursLearnsTheMix: after many jobs of 2g, a 1g leaves their places free.
func TestOursLearnsTheMix(t *testing.T) {
	f := fleet(t, "1x1xH100-80GB")
	var lines []string
	for i := range 200 {
		lines = append(lines, fmt.Sprintf("%d,0.5,,2g.20gb,,", i))
	}
	jobs := trace(t, f, append(lines, "300,,,1g.10gb,,")...)
	for _, tc := range []struct {
		alike bool
		want  int
	}{{false, 6}, {true, 4}} {
		start := -1
		replayed(t, f, jobs, Options{NoLearning: tc.alike, watch: func(e event, job int, spots []Spot) {
			if e == started && job == len(jobs)-1 {
				start = spots[0].Start
			}
		}})
		if start != tc.want {
			t.Errorf("NoLearning %v: the 1g is at %d, want %d", tc.alike, start, tc.want)
		}
	}
}

// TestSampleLooksAtTheNextNodes: kube-scheduler takes the best of some nodes with
// room, and begins behind them for the next pod.
func TestSampleLooksAtTheNextNodes(t *testing.T) {
	for nodes, want := range map[int]int{1: 1, 99: 99, 100: 100, 250: 120, 1000: 420, 5000: 500, 20000: 1000} {
		if got := sampled(nodes); got != want {
			t.Errorf("of %d nodes %d are looked at, want %d", nodes, got, want)
		}
	}
	f := fleet(t, "250x1xH100-80GB")
	var jobs []Job
	for i := range 5 {
		jobs = append(jobs, trace(t, f, fmt.Sprint(i, ",,,1g.10gb,,"))...)
	}
	var first []int
	opts := Options{Sample: true, watch: func(_ event, _ int, spots []Spot) { first = append(first, spots[0].GPU) }}
	replayed(t, f, jobs, opts)
	// All nodes are idle, and were asked once for the class: 120 from each of these on.
	if want := []int{120, 240, 120, 240, 120}; !reflect.DeepEqual(first, want) {
		t.Errorf("jobs went to nodes %v, want %v", first, want)
	}
}
