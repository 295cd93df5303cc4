// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// The page's state: the fleet as monitor/v1/fleet and monitor/v1/watch tell it, what of it is
// shown, and which pod's story is open. Nodes are drawn when they come near the
// window, so that 1000 of them cost as much as those that can be seen.

import { el, header, rows, sentence, spanKeys, trouble } from "./draw.js";
import { gone, tell, took } from "./story.js";

const $ = (id) => document.getElementById(id);
const root = document.documentElement;

const fleet = new Map(); // name -> {data, section, text, near, known}
let waiting = [];
let filter = "", query = "", model = "";
let token = "";
let open = null; // the pod of the story: "namespace/name"

// --- requests ---

// request asks with the token, and for another one where that is not enough.
async function request(path, signal) {
  for (;;) {
    const sent = token;
    const answer = await fetch(path, { signal, headers: sent ? { Authorization: `Bearer ${sent}` } : {} });
    if (answer.status !== 401 && answer.status !== 403) return answer;
    if (sent === token) await login(refusal(answer.status));
  }
}

function refusal(status) {
  if (status === 403) return "The API server knows this token and does not let it read the monitor; docs/monitor.md names the role that it needs.";
  return token ? "The API server does not know this token, or it has run out." : "This monitor asks the API server who you are.";
}

let asking = null; // the promise of a token, while the dialog is open

// login asks once, however many requests were refused.
function login(why) {
  const dialog = $("login");
  $("login-why").textContent = why;
  asking ??= new Promise((resolve) => {
    dialog.addEventListener("close", () => { token = $("token").value.trim(); $("token").value = ""; asking = null; resolve(); }, { once: true });
    dialog.showModal();
  });
  return asking;
}

const silence = 45000; // ms; the stream says something each 15 s
let heard = 0; // when something came last; 0: never

// follow loads the fleet and reads the stream of what changes, for ever. A stream
// that ends, as each does after some minutes, is taken up again where it ended; another
// process answers with all.
async function follow() {
  let version = "";
  for (let pause = 250; ; pause = Math.min(pause * 2, 3000)) {
    const cut = new AbortController();
    let began = Date.now();
    const guard = setInterval(() => { if (Date.now() - Math.max(heard, began) > silence) cut.abort(new Error("nothing was heard for too long")); }, 1000);
    try {
      if (!version) {
        const answer = await request("monitor/v1/fleet", cut.signal);
        began = Date.now(); // a large fleet takes its time from here
        if (!answer.ok) throw new Error(await answer.text());
        const all = await answer.json();
        take(all, true);
        version = all.version;
        heard = Date.now();
      }
      const answer = await request(`monitor/v1/watch?since=${encodeURIComponent(version)}`, cut.signal);
      if (!answer.ok) throw new Error(await answer.text());
      online("");
      pause = 125;
      for await (const { event, data } of events(answer.body)) {
        const message = JSON.parse(data);
        take(message, event === "reset");
        version = message.version;
      }
    } catch (error) {
      online(error.message || "no answer");
    } finally {
      clearInterval(guard);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

// events reads server-sent events. EventSource could not send a token.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [], event = "fleet";
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard = Date.now();
    const lines = value.split("\n");
    if (lines.length === 1) { parts.push(value); continue; }
    lines[0] = rest + parts.join("") + lines[0];
    parts = [];
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) yield { event, data: line.slice(6) };
    }
  }
}

// online shows whether the stream is there; why is empty, or why it is not. Without it
// what is shown is old, and says so.
function online(why) {
  const live = $("live"), stale = $("stale");
  stale.hidden = !why || !heard;
  root.classList.toggle("old", !stale.hidden);
  const text = why && heard ? `The scheduler's monitor does not answer. What you see is of ${new Date(heard).toLocaleTimeString()}; it goes on by itself.` : "";
  if (stale.textContent !== text) stale.textContent = text;
  stale.title = live.title = why;
  live.textContent = why ? "reconnecting" : "live";
  live.className = `live ${why ? "off" : "on"}`;
}

// --- the fleet ---

function take(message, all) {
  if (all) {
    const there = new Set(message.nodes.map((n) => n.name));
    for (const name of [...fleet.keys()]) if (!there.has(name)) drop(name);
  }
  for (const name of message.gone || []) drop(name);
  let added = false;
  for (const node of message.nodes) added = put(node) || added;
  if (added) arrange();
  waiting = message.waiting;
  drawTotals();
  drawModels();
  drawWaiting();
  show(message.nodes.map((n) => n.name));
  if (open) refreshStory();
  root.dataset.version = message.version;
  if (!root.dataset.painted) requestAnimationFrame(() => { root.dataset.painted = Math.round(performance.now()); });
}

function put(node) {
  let entry = fleet.get(node.name);
  const added = !entry;
  if (added) {
    entry = { section: el("section", { class: "node", "data-node": node.name }), near: false };
    fleet.set(node.name, entry);
  } else {
    entry.known = spanKeys(entry.data);
  }
  entry.data = node;
  entry.text = searchText(node);
  const gpus = (node.gpus || []).length || 1;
  entry.section.style.containIntrinsicSize = `auto none auto ${52 + 30 * gpus}px`;
  entry.section.style.minHeight = `${52 + 30 * gpus}px`;
  drawNode(entry);
  return added;
}

function drop(name) {
  const entry = fleet.get(name);
  if (!entry) return;
  observer.unobserve(entry.section);
  entry.section.remove();
  fleet.delete(name);
}

function searchText(node) {
  const words = [node.name];
  for (const g of node.gpus || []) {
    words.push(g.uuid, g.model);
    for (const s of g.spans || []) words.push(s.profile, s.state, s.uuid || "", s.owner?.namespace || "", s.owner?.name || "");
    for (const s of g.shares?.held || []) words.push(s.owner?.namespace || "", s.owner?.name || "");
  }
  return words.join("\n").toLowerCase();
}

// arrange puts the sections in the order of names.
function arrange() {
  const collator = new Intl.Collator(undefined, { numeric: true });
  const names = [...fleet.keys()].sort(collator.compare);
  const parent = $("fleet");
  parent.replaceChildren(...names.map((n) => fleet.get(n).section));
  for (const n of names) observer.observe(fleet.get(n).section);
}

const observer = new IntersectionObserver((changes) => {
  for (const c of changes) {
    const entry = fleet.get(c.target.dataset.node);
    if (!entry) continue;
    entry.near = c.isIntersecting;
    entry.known = undefined;
    drawNode(entry);
  }
}, { rootMargin: "600px 0px" });

function drawNode(entry) {
  const { section, data } = entry;
  const focused = section.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  if (!entry.near && !focused) {
    section.replaceChildren(el("h2", {}, data.name));
    return;
  }
  section.replaceChildren(header(data), ...rows(data, entry.known));
  highlight(section);
  if (focused) section.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

function highlight(section) {
  if (!query) return;
  const whole = `${section.dataset.node}`.toLowerCase().includes(query);
  for (const b of section.querySelectorAll(".span")) {
    b.classList.toggle("dim", !whole && !`${b.getAttribute("aria-label")} ${b.dataset.key}`.toLowerCase().includes(query));
  }
}

// --- what is shown ---

const tests = {
  "": () => true,
  free: (n) => (n.gpus || []).some((g) => g.freeSlices > 0 && g.largestFree),
  idle: (n) => (n.gpus || []).some((g) => (g.spans || []).some((s) => s.state === "Idle")),
  moving: (n) => (n.gpus || []).some((g) => (g.spans || []).some((s) => ["Assumed", "Published", "Preparing", "Leaving"].includes(s.state))),
  trouble,
};

function show(names = [...fleet.keys()]) {
  for (const name of names) {
    const entry = fleet.get(name);
    if (!entry) continue;
    entry.section.hidden = !(tests[filter](entry.data) && (!query || entry.text.includes(query)) &&
      (!model || (entry.data.gpus || []).some((g) => g.model === model)));
  }
  const shown = [...fleet.values()].filter((e) => !e.section.hidden).length;
  const text = fleet.size ? (shown === fleet.size ? `${fleet.size} node${fleet.size === 1 ? "" : "s"}` : `${shown} of ${fleet.size} nodes`) : "";
  if ($("count").textContent !== text) $("count").textContent = text;
  $("empty").hidden = shown > 0;
  $("empty").textContent = fleet.size ? "No node matches. Clear the search or choose All." : "No node has a GPUNode yet. Configure one in the agent's config.json.";
}

function drawTotals() {
  const t = { gpus: 0, sick: 0, used: 0, slices: 0, free: 0, pods: new Set(), idle: 0, stranded: 0, fragmentation: 0 };
  for (const { data } of fleet.values()) {
    for (const g of data.gpus || []) {
      t.gpus++;
      if (g.health !== "Healthy") t.sick++;
      for (const s of g.shares?.held || []) if (s.owner) t.pods.add(s.owner.uid);
      if (g.shares) continue;
      t.slices += g.memorySlices;
      t.free += g.freeSlices;
      t.stranded += g.stranded;
      t.fragmentation += g.fragmentation;
      for (const s of g.spans || []) {
        if (s.state === "Idle") t.idle++;
        else if (!["Foreign", "Stuck", "Leaving"].includes(s.state)) { t.used += s.size; t.pods.add(s.owner.uid); }
      }
    }
  }
  const part = t.slices ? t.used / t.slices : 0;
  const meter = el("span", { class: "meter", "aria-hidden": "true" }, el("i"));
  meter.firstChild.style.width = `${100 * part}%`;
  const tile = (name, value, kind, extra) => el("div", { class: kind || "" }, el("dt", {}, name), el("dd", {}, value, extra || ""));
  $("totals").replaceChildren(
    tile("GPUs", `${t.gpus}`),
    tile("slices in use", `${Math.round(100 * part)}%`, "", meter),
    tile("slices free", `${t.free}`),
    tile("pods placed", `${t.pods.size}`),
    tile("waiting", `${waiting.length}`, waiting.length ? "warn" : ""),
    tile("idle instances", `${t.idle}`),
    tile("stranded slices", `${t.stranded}`),
    tile("unhealthy", `${t.sick}`, t.sick ? "bad" : ""));
}

function drawModels() {
  const models = [...new Set([...fleet.values()].flatMap((e) => (e.data.gpus || []).map((g) => g.model)))].sort();
  const select = $("model");
  if ([...select.options].slice(1).map((o) => o.value).join() === models.join()) return;
  select.replaceChildren(el("option", { value: "" }, "All models"), ...models.map((m) => el("option", { value: m }, m.replace(/^NVIDIA /, ""))));
  select.value = model;
}

const most = 200; // waiting pods that are listed

function drawWaiting() {
  $("waiting").hidden = waiting.length === 0;
  $("waiting-title").textContent = `${waiting.length} waiting pod${waiting.length === 1 ? "" : "s"}`;
  const now = Date.now();
  const focused = $("queue").contains(document.activeElement) ? document.activeElement.dataset.pod : null;
  $("queue").replaceChildren(...waiting.slice(0, most).map((w) => el("li", {}, el("button", { type: "button", "data-pod": `${w.namespace}/${w.name}` },
    el("span", { class: "age" }, took(Math.max(0, (now - new Date(w.created)) / 1000))), el("span", { class: "pod" }, w.name), " ", el("span", { class: "muted" }, w.namespace),
    el("span", { class: "asks" }, w.request),
    el("span", { class: "why", title: w.message }, sentence(w.reason || (w.gated ? "gated." : "not tried yet.")))))),
    waiting.length > most ? el("li", { class: "muted" }, `and ${waiting.length - most} more`) : "");
  if (focused) $("queue").querySelector(`[data-pod="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// --- a pod's story ---

let loading = null, again = false;

async function refreshStory() {
  if (loading) { again = true; return; }
  loading = open;
  const [namespace, name] = open.split("/");
  const answer = await request(`monitor/v1/pods/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`).catch(() => null);
  if (answer?.ok && open === loading) {
    const story = await answer.json();
    tell($("story"), story, fleet.get(story.node)?.data);
  } else if (answer?.status === 404 && open === loading) {
    gone($("story"), name);
  }
  await new Promise((resolve) => setTimeout(resolve, 300)); // each costs a request to the API server
  const next = again || open !== loading;
  loading = null;
  again = false;
  if (next && open) refreshStory();
}

function openStory(pod) {
  open = pod;
  location.hash = `pod=${pod}`;
  const dialog = $("story");
  gone(dialog, pod.split("/")[1]);
  dialog.querySelector(".state").textContent = "loading";
  dialog.querySelector("p").textContent = "";
  if (!dialog.open) dialog.showModal();
  refreshStory();
}

$("story").addEventListener("close", () => { open = null; history.replaceState(null, "", location.pathname + location.search); });
$("story").addEventListener("click", (e) => { if (e.target === $("story")) $("story").close(); });

document.addEventListener("click", (e) => {
  const pod = e.target.closest?.("[data-pod]")?.dataset.pod;
  if (pod) openStory(pod);
});

// --- tools ---

$("search").addEventListener("input", () => {
  query = $("search").value.trim().toLowerCase();
  for (const entry of fleet.values()) if (entry.near) { entry.known = undefined; drawNode(entry); }
  show();
});
$("model").addEventListener("change", () => { model = $("model").value; show(); });
for (const b of document.querySelectorAll("[data-filter]")) {
  b.addEventListener("click", () => {
    filter = b.dataset.filter;
    for (const other of document.querySelectorAll("[data-filter]")) other.setAttribute("aria-pressed", String(other === b));
    show();
  });
}

document.addEventListener("keydown", (e) => {
  if (e.key === "/" && !/INPUT|SELECT/.test(document.activeElement.tagName) && !$("story").open) {
    e.preventDefault();
    $("search").focus();
  } else if (e.key === "Escape" && document.activeElement === $("search")) {
    $("search").value = "";
    $("search").dispatchEvent(new Event("input"));
  } else if (document.activeElement?.classList.contains("span")) {
    move(e);
  }
});

// move goes through the instances with the arrow keys: along a GPU, and from GPU to
// GPU at the same slice.
function move(e) {
  const here = document.activeElement;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
  let next = null;
  if (step) next = step > 0 ? here.nextElementSibling : here.previousElementSibling;
  else if (e.key === "ArrowDown" || e.key === "ArrowUp") {
    const all = [...$("fleet").querySelectorAll(".bar")].filter((b) => b.children.length && b.offsetParent);
    const row = all[all.indexOf(here.parentElement) + (e.key === "ArrowDown" ? 1 : -1)];
    const at = here.getBoundingClientRect().left + 4;
    next = row && ([...row.children].find((b) => b.getBoundingClientRect().right > at) || row.lastElementChild);
  } else return;
  e.preventDefault();
  next?.focus();
}

const themes = ["auto", "light", "dark"];
function theme(name) {
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  try { localStorage.setItem("theme", name); } catch { /* storage may be off */ }
}
let saved = "auto";
try { saved = localStorage.getItem("theme") || "auto"; } catch { /* as above */ }
theme(themes.includes(saved) ? saved : "auto");
$("theme").addEventListener("click", () => theme(themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length]));

setInterval(() => { if (!document.hidden && waiting.length) drawWaiting(); }, 10000); // ages
follow().then(null, (error) => { $("live").textContent = error.message; });
const linked = new URLSearchParams(location.hash.slice(1)).get("pod")?.match(/^([^/]+\/[^/]+)$/);
if (linked) openStory(linked[1]);
