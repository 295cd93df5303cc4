// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/fleet"
)

// serve is a made-up fleet behind the real monitor.
func serve(t *testing.T, nodes int, part float64) (*fleet.Fleet, string) {
	t.Helper()
	return serveBehind(t, nodes, part, func(h http.Handler) http.Handler { return h })
}

// serveBehind is serve, where requests for data pass guard.
func serveBehind(t *testing.T, nodes int, part float64, guard func(http.Handler) http.Handler) (*fleet.Fleet, string) {
	t.Helper()
	f, err := fleet.New(t.Context(), 1, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Fill(t.Context(), nodes, part); err != nil {
		t.Fatal(err)
	}
	m, err := f.Monitor(monitor.Config{Authenticate: true}) // as guard is to see to
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(m.Handler(guard))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return f, s.URL
}

// TestTextIsText: whatever stands in texts that users, containers or other programs write, the
// page shows it as it is.
func TestTextIsText(t *testing.T) {
	const evil = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"'&lt;`
	f, url := serve(t, 0, 0)
	if err := f.AddNode("node1", "A100-40GB", 2); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitNode(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "evil", GPUs: 1, MemoryMiB: 4000})
	pod.Annotations["nvidia.com/vgpu-mode"] = evil[:60]
	f.Refuse(pod, evil)
	f.Stop(pod, evil, evil)
	f.Change("node1", func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[1].Health, s.GPUs[1].Reason = v1alpha1.Unhealthy, evil
		s.Conditions[0].Status, s.Conditions[0].Message = "True", evil
		s.Pods = []v1alpha1.PodPreparation{{UID: pod.UID, Phase: v1alpha1.PodFailing, Reason: evil}}
	})
	if _, err := f.Client.CoreV1().Events("ns").Create(t.Context(), &v1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "evil.1"}, EventTime: metav1.NowMicro(), Type: evil, Reason: evil, Message: evil,
		InvolvedObject: v1.ObjectReference{Namespace: "ns", Name: "evil", UID: pod.UID}, Series: &v1.EventSeries{Count: 3},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := Open(t, url+"/#pod=ns/evil", 1280, 900, false)
	p.Until("the GPU's reason", live+` && document.querySelector(".gpu.sick .left")?.textContent === `+strconv.Quote(evil))
	p.Until("what the pod asks for", `document.getElementById("queue").textContent.includes(`+strconv.Quote(evil[:60])+`)`)
	p.Until("the container's message", `document.querySelector(".containers td:last-child")?.textContent === `+strconv.Quote(evil+": "+evil))
	p.Until("the event", `document.querySelector(".events td:last-child")?.textContent === `+strconv.Quote(evil+" (3 times)"))
	if got := Eval[[]string](p, `[document.title, ...[...document.querySelectorAll("img, script")].map((e) => e.getAttribute("src"))]`); !slices.Equal(got, []string{"dynamig", "app.js", "icon.svg"}) {
		t.Errorf("the page has the title, images and scripts %q", got)
	}
	if Eval[bool](p, `(() => { try { document.createElement("p").innerHTML = "x"; return true; } catch { return false; } })()`) {
		t.Error("text can be made HTML: the policy lacks trusted types")
	}
}

// TestPageTellsTroubleFromRemarks: a node whose agent or kubelet is gone says so and is
// in trouble; a condition that is for the curious is small and no trouble.
func TestPageTellsTroubleFromRemarks(t *testing.T) {
	f, url := serve(t, 3, 0.6)
	p := Open(t, url, 1280, 900, false)
	p.Until("three nodes", live+` && document.querySelectorAll(".node").length === 3 && document.querySelectorAll(".badge").length === 0`)
	Eval[bool](p, `document.querySelector('[data-filter="trouble"]').click() || true`)
	p.Until("no trouble", `document.getElementById("count").textContent === "0 of 3 nodes"`)
	kubelet := func(node string, says pool.Kubelet) {
		t.Helper()
		if err := f.Kubelet(node, says); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(node, kind, text string) {
		t.Helper()
		p.Until(text+" of "+node, `[...document.querySelectorAll('[data-node="`+node+`"]:not([hidden]) .badge.`+kind+`')].some((b) => b.textContent === "`+text+`" && b.title)`)
	}
	free := Eval[int](p, `+document.querySelector("#totals div:nth-child(3) dd").textContent`)
	kubelet("gpu-node-01", pool.Kubelet{Ready: true})
	shows("gpu-node-01", "bad", "agent down")
	p.Until("nothing free there", `/^0 of \d+ slices free$/.test(document.querySelector('[data-node="gpu-node-01"] .sum').textContent)`)
	if now := Eval[int](p, `+document.querySelector("#totals div:nth-child(3) dd").textContent`); now >= free {
		t.Errorf("%d slices are free in all, and were %d with the agent that is down", now, free)
	}
	kubelet("gpu-node-02", pool.Kubelet{Devices: 28})
	shows("gpu-node-02", "bad", "node not ready")
	f.Share("gpu-node-03")
	kubelet("gpu-node-03", pool.Kubelet{Ready: true})
	shows("gpu-node-03", "bad", "agent down")
	for _, node := range f.Names() {
		kubelet(node, pool.Kubelet{Devices: 28, Ready: true})
	}
	f.Change("gpu-node-03", func(s *v1alpha1.GPUNodeStatus) {
		s.Conditions = append(s.Conditions, metav1.Condition{Type: "ConfigRemarks", Status: "True", Reason: "Remarks", Message: "2g.12gb has 11968 MiB, the configuration says 12288"})
	})
	p.Until("no trouble again", `document.getElementById("count").textContent === "0 of 3 nodes"`)
	Eval[bool](p, `document.querySelector('[data-filter=""]').click() || true`)
	shows("gpu-node-03", "quiet", "config remarks")
	const remedy = "nodeconfig has no entry for this node; add one"
	f.Change("gpu-node-03", func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs = nil
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: "False", Reason: "NotConfigured", Message: remedy})
	})
	shows("gpu-node-03", "bad", "not ready: NotConfigured")
	p.Until("the remedy in the empty box", `document.querySelector('[data-node="gpu-node-03"] p')?.textContent === "`+remedy+`"`)
}

// TestLinkToAStoryAsksForOneToken: fleet and story are refused both, and go on with the
// token that is entered once.
func TestLinkToAStoryAsksForOneToken(t *testing.T) {
	f, url := serveBehind(t, 1, 0, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer good" {
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	f.Create(fleet.Pod{Namespace: "ns", Name: "linked", GPUs: 1, MemoryMiB: 4000})
	p := Open(t, url+"/#pod=ns/linked", 1280, 900, false)
	p.Until("the question for a token", `document.getElementById("login").open && document.activeElement.id === "token"`)
	p.Until("both answers", `performance.getEntriesByType("resource").filter((e) => e.name.includes("/monitor/v1/") && e.responseStatus === 401).length === 2`)
	p.Type("good")
	p.Keys(kb.Enter)
	p.Until("fleet and story", live+` && !document.getElementById("login").open && document.querySelector("#story .state").textContent === "waiting"`)
}

// TestFirstRequestThatHangs is given up, as a stream that says nothing is.
func TestFirstRequestThatHangs(t *testing.T) {
	var asked atomic.Int32
	_, url := serveBehind(t, 1, 0, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/fleet") && asked.Add(1) == 1 {
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	p := Open(t, url, 1280, 900, false)
	p.Until("the page", `document.getElementById("live").textContent === "connecting"`)
	Eval[bool](p, `(Date.now = ((now) => () => now() + 60000)(Date.now)) && true`)
	p.Until("the fleet", live+` && document.querySelectorAll(".node .bar").length === 8`)
}

// TestWordsAreNotBroken: in a story a long message leaves the other columns their words, a
// lone node has the whole width, and shares are named below their bar, with their cores.
func TestWordsAreNotBroken(t *testing.T) {
	for _, dark := range []bool{false, true} {
		theme := map[bool]string{true: "dark", false: "light"}[dark]
		f, url := serve(t, 0, 0)
		if err := f.AddNode("node1", "A100-40GB", 2); err != nil {
			t.Fatal(err)
		}
		f.Share("node1")
		p := Open(t, url, 1280, 900, dark)
		p.Until("the node", live+` && document.querySelectorAll('.node .bar').length === 2 && document.querySelector(".gpu .left").textContent.includes("100% cores")`)
		if got := Eval[float64](p, `document.querySelector(".node").offsetWidth`); got < 1200 {
			t.Errorf("the only node is %v pixels wide in a window of 1280", got)
		}
		for i, size := range []fleet.Pod{{MemoryMiB: 1000, Cores: 30}, {MemoryMiB: 500}, {MemoryMiB: 12000, Cores: 20}} {
			size.Namespace, size.Name, size.GPUs = "ns", fmt.Sprintf("notebook-of-somebody-%d", i), 1
			pod := f.Create(size)
			if ok, err := f.Bind(pod, "node1"); !ok {
				t.Fatal(err)
			}
			f.Prepare(pod)
			f.Stop(pod, "CreateContainerConfigError", strings.Repeat("the node agent has not prepared /var/run/dynamig/containers/0b1c7d0a-5f3e ", 3))
		}
		p.Until("the shares by name", `/notebook-of-somebody-0 1\.0 GiB, 30% of the cores/.test(document.querySelector(".held")?.textContent) && document.querySelectorAll(".held span").length === 3`)
		p.Until("the cores that are left", `document.querySelector(".gpu .left").textContent.includes("50% cores")`)
		p.Screenshot("shares-" + theme)
		Eval[bool](p, `document.querySelector(".held [data-pod]").click() || true`)
		p.Until("the container", `!!document.querySelector(".containers td")`)
		for _, width := range []int64{400, 1280} {
			p.do("another width", chromedp.EmulateViewport(width, 900))
			if cut := Eval[[]string](p, brokenCells); len(cut) > 0 {
				t.Errorf("%d pixels wide, words of %v are broken", width, cut)
			}
		}
		p.Screenshot("story-shares-" + theme)
		p.Close()
	}
}

// TestOneFootnoteForWhatIsHidden: a message that the server leaves out is a star, and why it
// does is said once.
func TestOneFootnoteForWhatIsHidden(t *testing.T) {
	f, url := serve(t, 1, 0)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "quiet", GPUs: 1, MemoryMiB: 4000})
	f.Stop(pod, "Error", "message hidden: this monitor does not ask its readers who they are")
	p := Open(t, url+"/#pod=ns/quiet", 1280, 900, false)
	p.Until("the star", `document.querySelector(".containers td:last-child")?.textContent === "Error: *"`)
	p.Until("the footnote", `document.querySelector("#story .footnote").textContent === "* Message hidden: this monitor does not ask its readers who they are."`)
}

// brokenCells are the texts of a story's containers, but for messages, that take more than
// one line.
const brokenCells = `[...document.querySelectorAll(".containers td:not(:last-child)")].filter((e) => { const r = document.createRange(); r.selectNodeContents(e); return r.getClientRects().length > 1; }).map((e) => e.textContent)`

// TestPageShowsAndFollows: states, search, filter, keyboard and a pod's story, on
// three nodes with some trouble.
func TestPageShowsAndFollows(t *testing.T) {
	f, url := serve(t, 3, 0.6)
	if err := f.Trouble(f.Names()); err != nil {
		t.Fatal(err)
	}
	p := Open(t, url, 1280, 900, false)
	p.Until("four nodes", `document.querySelectorAll(".node .bar").length === 18`)
	p.Until("the stream", live)
	for _, state := range []string{"Used", "Preparing", "Foreign"} {
		p.Until("a span in state "+state, `!!document.querySelector('[data-state="`+state+`"]')`)
	}
	p.Until("the waiting pods", `document.querySelectorAll("#queue button").length === 3`)
	if why := Eval[string](p, `document.getElementById("queue").textContent`); !strings.Contains(why, "3 node(s) had no free MIG placement") || strings.Contains(why, "nodes are available") {
		t.Errorf("the waiting pods say %q", why)
	}
	p.Until("what is not dynamig's, as the legend names it", `document.querySelector('[data-state="Foreign"] .pod').textContent === "foreign" && document.querySelector(".legend").textContent.includes("foreign")`)
	p.Until("the GPU that is unhealthy", `document.querySelector(".gpu.sick .left").textContent.includes("XID 79")`)

	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "newcomer", GPUs: 1, MemoryMiB: 4000})
	p.Until("the new pod among those that wait", `document.getElementById("queue").textContent.includes("newcomer")`)
	if ok, err := f.Bind(pod, "gpu-node-01"); err != nil || !ok {
		t.Fatal(ok, err)
	}
	p.Until("its place", `!!document.querySelector('[data-pod="ns/newcomer"][data-state="Preparing"]')`)
	f.Prepare(pod)
	p.Until("its instance", `!!document.querySelector('.fleet [data-pod="ns/newcomer"][data-state="Used"]')`)

	p.Keys("/")
	p.Until("the focus on the search", `document.activeElement.id === "search"`)
	// DevTools sends the character though the page has prevented the key's default.
	Eval[bool](p, `(document.activeElement.value = "") === ""`)
	p.Keys("newcomer")
	p.Until("one node that matches", `document.getElementById("count").textContent === "1 of 4 nodes"`)
	p.Until("the others dimmed", `document.querySelectorAll(".node:not([hidden]) .span:not(.dim)").length === 1`)
	p.Keys(kb.Escape)
	p.Until("all nodes", `document.getElementById("count").textContent === "4 nodes"`)

	Eval[bool](p, `document.querySelector('.fleet [data-pod="ns/newcomer"]').focus() || true`)
	p.Keys(kb.Enter)
	p.Until("its story", `document.getElementById("story").open && document.querySelectorAll(".steps .done").length === 6`)
	p.Until("where it is", `document.querySelector("#story .lit")?.dataset.pod === "ns/newcomer"`)
	f.Delete(pod)
	p.Until("that it is gone", `document.querySelector("#story .state").textContent === "gone"`)
	p.Keys(kb.Escape)
	p.Until("the story closed", `!document.getElementById("story").open`)

	Eval[bool](p, `document.querySelector('[data-filter="trouble"]').click() || true`)
	p.Until("the nodes with trouble", `document.getElementById("count").textContent === "2 of 4 nodes"`)
	f.RemoveNode("gpu-node-02")
	p.Until("one node less", `document.getElementById("count").textContent === "1 of 3 nodes"`)
}

// TestPageForKeyboardAndReader: arrow keys walk over instances, and every control has
// a name.
func TestPageForKeyboardAndReader(t *testing.T) {
	f, url := serve(t, 3, 0.9)
	if err := f.Trouble(f.Names()); err != nil {
		t.Fatal(err)
	}
	p := Open(t, url, 1280, 900, true)
	p.Until("the GPUs", `document.querySelectorAll(".node .bar").length === 18`)
	Eval[bool](p, `document.querySelector(".fleet .span").focus() || true`)
	first := Eval[string](p, `document.activeElement.dataset.key`)
	p.Keys(kb.ArrowDown)
	p.Until("another GPU", `document.activeElement.classList.contains("span") && document.activeElement.dataset.key.split("/")[1] !== "`+strings.Split(first, "/")[1]+`"`)
	unnamed := Eval[[]string](p, `[...document.querySelectorAll("button, input, select, a")].filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML.slice(0, 120))`)
	if len(unnamed) > 0 {
		t.Errorf("controls without a name: %v", unnamed)
	}
	// Text on the blocks, and beside them, against what it stands on (WCAG 2: 4.5).
	for _, dark := range []bool{true, false} {
		theme := map[bool]string{true: "dark", false: "light"}[dark]
		Eval[bool](p, `(document.documentElement.dataset.theme = "`+theme+`") && true`)
		for _, c := range Eval[[]string](p, contrasts) {
			t.Errorf("%s theme: too little contrast: %s", theme, c)
		}
	}
}

// contrasts lists texts that are hard to read: it draws each colour on a canvas,
// since computed colours come in several notations.
const contrasts = `(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (stack) => { canvas.clearRect(0, 0, 1, 1); for (const c of stack) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); } return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const bad = [];
  for (const e of document.querySelectorAll(".span .profile, .gpu .left, .gpu .index, .node h2, .muted, .totals dt, .totals dd, .badge, .waiting .why, .filters button, .legend li")) {
    if (!e.textContent.trim() || !e.offsetParent || e.closest(".sick, .foreign, .stuck")) continue;
    const stack = [];
    for (let at = e; at; at = at.parentElement) stack.unshift(getComputedStyle(at).backgroundColor);
    const ground = over(["#fff", ...stack]), text = over(["#fff", ...stack, getComputedStyle(e).color]);
    const [hi, lo] = [light(ground), light(text)].sort((a, b) => b - a);
    const ratio = (hi + 0.05) / (lo + 0.05);
    if (ratio < 4.5) bad.push(e.className + " " + e.textContent.slice(0, 20) + " " + ratio.toFixed(2));
  }
  return [...new Set(bad)].slice(0, 10);
})()`

// TestPageOfAThousandNodes: what it costs to show them and to follow one change.
func TestPageOfAThousandNodes(t *testing.T) {
	f, url := serve(t, 1000, 0.5)
	p := Open(t, url, 1280, 900, false)
	p.Until("1000 nodes", `document.getElementById("count").textContent === "1000 nodes" && !!document.documentElement.dataset.painted`)
	paint := Eval[float64](p, `performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? -1`)
	painted := Eval[string](p, `document.documentElement.dataset.painted`)
	elements := Eval[int](p, `document.querySelectorAll("*").length`)
	p.Until("the stream", live)

	var took []time.Duration
	for i := range 5 {
		pod := f.Create(fleet.Pod{Namespace: "ns", Name: "follow-" + string(rune('a'+i)), GPUs: 1, MemoryMiB: 4000})
		bound := ""
		for _, node := range f.Names() {
			if ok, err := f.Bind(pod, node); err != nil {
				t.Fatal(err)
			} else if ok {
				bound = node
				break
			}
		}
		began := time.Now()
		f.Prepare(pod)
		p.Until("the pod on "+bound, `!!document.querySelector('.fleet [data-pod="ns/`+pod.Name+`"][data-state="Used"]')`)
		took = append(took, time.Since(began))
	}
	t.Logf("first contentful paint %.0f ms, all of the fleet drawn after %s ms, %d elements; updates shown after %v", paint, painted, elements, took)
	if elements > 20000 {
		t.Errorf("%d elements for 1000 nodes: those out of sight are drawn too", elements)
	}
	p.Screenshot("fleet-1000")
	last := f.Names()[999]
	Eval[bool](p, `document.querySelector('[data-node="`+last+`"]').scrollIntoView() || true`)
	p.Until("the last node drawn", `document.querySelectorAll('[data-node="`+last+`"] .bar').length > 0`)
}

// TestScreenshots: both themes, wide and narrow; nothing is wider than the window.
func TestScreenshots(t *testing.T) {
	f, url := serve(t, 3, 0.6)
	if err := f.Trouble(f.Names()); err != nil {
		t.Fatal(err)
	}
	for _, shot := range []struct {
		name  string
		width int64
		dark  bool
	}{{"fleet-light", 1280, false}, {"fleet-dark", 1280, true}, {"fleet-light-400", 400, false}, {"fleet-dark-400", 400, true}} {
		p := Open(t, url, shot.width, 860, shot.dark)
		p.Until("the GPUs", `document.querySelectorAll(".node .bar").length === 18 && document.getElementById("live").textContent === "live"`)
		p.Screenshot(shot.name)
		if over := Eval[int](p, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
			t.Errorf("%s: the page is %d pixels wider than the window", shot.name, over)
		}
		if shot.dark {
			Eval[bool](p, `document.querySelector('[data-state="Used"][data-profile^="3g"]').click() || true`)
			p.Until("the story", `document.querySelectorAll(".steps .done").length >= 5`)
			p.Screenshot(strings.Replace(shot.name, "fleet", "story", 1))
		}
	}
}
