// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/dynamig/dynamig/pkg/replay"
)

// estimate is a mean with the half width of its 95 % confidence interval.
type estimate struct{ mean, half float64 }

// estimated is of independent values.
func estimated(values []float64) estimate {
	n := float64(len(values))
	e := estimate{half: math.Inf(1)}
	for _, v := range values {
		e.mean += v / n
	}
	if n < 2 {
		return e
	}
	variance := 0.0
	for _, v := range values {
		variance += (v - e.mean) * (v - e.mean) / (n - 1)
	}
	e.half = student(len(values)-1) * math.Sqrt(variance/n)
	return e
}

// student is the 97.5 % quantile of Student's distribution, by the expansion of
// Cornish and Fisher: right to 0.004 from 5 degrees of freedom.
func student(freedom int) float64 {
	const z = 1.959964
	n := float64(freedom)
	return z + (z*z*z+z)/(4*n) + (5*math.Pow(z, 5)+16*z*z*z+3*z)/(96*n*n) +
		(3*math.Pow(z, 7)+19*math.Pow(z, 5)+17*z*z*z-15*z)/(384*n*n*n)
}

// utilisation is what counts of a result, in points.
func utilisation(l load, r *replay.Result) float64 {
	if l.rho == 0 {
		return 100 * r.UtilisationAtEnd
	}
	return 100 * r.Utilisation
}

// regret is of one policy at a load for a mix: the bound's utilisation less the
// policy's, by seed, since both saw the same requests.
func (m measured) regret(policy string, l, mix int) []float64 {
	var out []float64
	for seed, r := range m[policy][l][mix] {
		out = append(out, utilisation(loads[l], m[replay.Repack][l][mix][seed])-utilisation(loads[l], r))
	}
	return out
}

// overall is the mean over the mixes, by seed.
func overall(of func(mix int) []float64) []float64 {
	var sum []float64
	for i := range mixes {
		values := of(i)
		if sum == nil {
			sum = make([]float64, len(values))
		}
		for seed, v := range values {
			sum[seed] += v / float64(len(mixes))
		}
	}
	return sum
}

// points are what the plot shows, by load and policy.
func (p protocol) points(m measured) []panel {
	var panels []panel
	for l := range loads {
		title := "load " + loads[l].name
		if loads[l].rho == 0 {
			title = "fill"
		}
		panel := panel{title: title}
		for _, policy := range replay.Policies() {
			if policy != replay.Repack {
				e := estimated(overall(func(mix int) []float64 { return m.regret(policy, l, mix) }))
				panel.rows = append(panel.rows, row{policy, e})
			}
		}
		panels = append(panels, panel)
	}
	return panels
}

// report is the generated part of the page.
func (p protocol) report(m measured) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d GPUs; %d runs of %d requests for each mix and load, %d runs of a fill; ± is the half width of the\n95 %% confidence interval of the mean.\n",
		gpus, p.seeds, p.arrivals, p.fills)
	for l := range loads {
		p.table(&b, m, l)
	}
	return b.String()
}

func (p protocol) table(b *strings.Builder, m measured, l int) {
	title, fill := "Load "+loads[l].name, loads[l].rho == 0
	if fill {
		title = "Fill"
	}
	fmt.Fprintf(b, "\n### %s\n\n| policy | regret, mean |", title)
	for _, mix := range mixes {
		fmt.Fprintf(b, " %s |", mix.name)
	}
	b.WriteString(" utilisation | work accepted | jobs accepted | GPUs on | free slices stranded |\n| --- |")
	b.WriteString(strings.Repeat(" ---: |", len(mixes)+6) + "\n")
	for _, policy := range replay.Policies() {
		e := estimated(overall(func(mix int) []float64 { return m.regret(policy, l, mix) }))
		fmt.Fprintf(b, "| %s | %.2f ± %.2f |", policy, e.mean, e.half)
		for i := range mixes {
			fmt.Fprintf(b, " %.2f |", estimated(m.regret(policy, l, i)).mean)
		}
		mean := func(of func(r *replay.Result) float64) float64 {
			return estimated(overall(func(mix int) []float64 { return m.each(policy, l, mix, of) })).mean
		}
		fmt.Fprintf(b, " %.1f %% | %.1f %% | %.1f %% | %.1f |",
			mean(func(r *replay.Result) float64 { return utilisation(loads[l], r) }),
			mean(func(r *replay.Result) float64 { return 100 * r.AcceptedSliceSeconds / r.OfferedSliceSeconds }),
			mean(func(r *replay.Result) float64 { return 100 * float64(r.Accepted) / float64(r.Jobs) }),
			mean(func(r *replay.Result) float64 { return r.GPUsOn }))
		if policy == replay.Repack {
			b.WriteString(" |\n")
			continue
		}
		fmt.Fprintf(b, " %.1f %% |\n", mean(func(r *replay.Result) float64 { return 100 * *r.Stranded }))
	}
}

// each is a figure by seed.
func (m measured) each(policy string, l, mix int, of func(*replay.Result) float64) []float64 {
	var out []float64
	for _, r := range m[policy][l][mix] {
		out = append(out, of(r))
	}
	return out
}

// targets says how the figures stand to what was aimed at.
func (p protocol) targets(m measured, out io.Writer) error {
	most := []float64{.8, 3.0, 1.2}
	for l := range loads {
		e := estimated(overall(func(mix int) []float64 { return m.regret(replay.Ours, l, mix) }))
		fmt.Fprintf(out, "%-5s regret of %s: %.2f ± %.2f, aim at most %.1f: %s\n", loads[l].name, replay.Ours, e.mean, e.half, most[l], met(e.mean <= most[l]))
		for i, mix := range mixes {
			worse := estimated(minus(m.regret(replay.Ours, l, i), m.regret(replay.BestFit, l, i)))
			if worse.mean > -.5 {
				fmt.Fprintf(out, "%-5s %s: %+.2f ± %.2f beside best-fit, aim at most +0.2: %s\n", loads[l].name, mix.name, worse.mean, worse.half, met(worse.mean <= .2))
			}
		}
	}
	for _, rival := range []string{replay.HAMi, replay.HAMiByMemory} {
		e := estimated(overall(func(mix int) []float64 {
			return minus(m.regret(rival, 1, mix), m.regret(replay.Ours, 1, mix))
		}))
		if _, err := fmt.Fprintf(out, "1.0   %.2f ± %.2f points above %s, aim at least 6: %s\n", e.mean, e.half, rival, met(e.mean >= 6)); err != nil {
			return err
		}
	}
	return nil
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "MISSED"
}

func minus(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] - b[i]
	}
	return out
}

// replace puts text between the marks of a part of a file.
func replace(file, part, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := fmt.Sprintf("<!-- %s: generated by make bench-packing -->\n", part), fmt.Sprintf("<!-- end of %s -->\n", part)
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no part between %q and %q", file, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return os.WriteFile(file, []byte(before+begin+"\n"+text+"\n"+end+after), 0o644)
}
