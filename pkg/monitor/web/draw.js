// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Drawing of nodes and GPUs from the pictures of monitor/v1/fleet. All text goes through
// textContent: names come from the cluster.

/** el makes an element: el("span", {class: "x", title: "y"}, "text", child). */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

const stateWords = {
  Used: "used by", Preparing: "being prepared for", Published: "published for", Assumed: "chosen for",
  Idle: "idle, kept warm", Leaving: "being released", Foreign: "foreign, not made by dynamig", Stuck: "stuck: it could not be destroyed yet",
};

/** size is the palette's class of a profile: by compute slices of the whole GPU. */
export function size(span, gpu) {
  const part = (span.compute || 1) / gpu.computeSlices;
  if (part >= 0.99) return "c7";
  if (gpu.computeSlices === 4) return span.compute >= 2 ? "c3" : "c1";
  return { 1: "c1", 2: "c2", 3: "c3", 4: "c4" }[span.compute] || "c7";
}

const classOf = { Preparing: "preparing", Published: "assumed", Assumed: "assumed", Idle: "idle", Leaving: "leaving", Foreign: "foreign", Stuck: "stuck" };

function place(node, start, length, whole) {
  node.style.left = `calc(${(100 * start) / whole}%)`;
  node.style.width = `calc(${(100 * length) / whole}% - 2px)`;
}

const ownerName = (o) => (o ? (o.name ? `${o.namespace}/${o.name}` : `pod ${o.uid}`) : "");

const containers = (owner) => {
  const names = (owner?.uses || []).filter((u) => !u.init).map((u) => u.container).join(", ");
  return names ? `, container ${names}` : "";
};

// profileName leaves its second part out where the block is narrow.
function profileName(name) {
  const [compute, ...rest] = name.split(".");
  return rest.length ? [compute, el("i", {}, `.${rest.join(".")}`)] : [compute];
}

/** block is one span as a button. */
export function block(node, gpu, span, fresh) {
  const owner = ownerName(span.owner);
  const memory = span.memoryMiB ? `, ${(span.memoryMiB / 1024).toFixed(1)} GiB` : "";
  const words = `${span.profile} at slice ${span.start}${memory}: ${stateWords[span.state] || span.state} ${owner}${containers(span.owner)}`.trim();
  const b = el("button", {
    type: "button", class: `span ${size(span, gpu)} ${classOf[span.state] || ""}${fresh ? " fresh" : ""}`,
    "data-key": `${node.name}/${gpu.uuid}/${span.profileID}/${span.start}`, "data-pod": span.owner?.name ? owner : null,
    "data-state": span.state, "data-profile": span.profile, "data-start": span.start,
    "aria-label": `${words}. GPU ${gpu.index} of ${node.name}`, title: words,
  }, el("span", { class: "profile" }, ...profileName(span.profile)),
  el("span", { class: "pod" }, span.owner?.name || { Idle: "idle", Foreign: "foreign", Stuck: "stuck" }[span.state] || ""));
  place(b, span.start, span.size, gpu.memorySlices);
  return b;
}

const gib = (mib) => (mib / 1024).toFixed(1);
const coresOf = (s) => (s.cores ? `, ${s.cores}% of the cores` : "");

/** share is one software share as a button; at and whole are in MiB. */
function share(node, gpu, s, at, whole) {
  const owner = ownerName(s.owner);
  const words = `${s.memoryMiB} MiB${coresOf(s)}, shared in software: ${owner}${containers(s.owner)}`;
  const b = el("button", {
    type: "button", class: `span share c2 ${classOf[s.state] || ""}`, "data-key": `${node.name}/${gpu.uuid}/share/${owner}/${at}`,
    "data-pod": s.owner?.name ? owner : null, "data-state": s.state, "aria-label": `${words}. GPU ${gpu.index} of ${node.name}`, title: words,
  }, el("span", { class: "profile" }, `${gib(s.memoryMiB)}G`), el("span", { class: "pod" }, s.owner?.name || ""));
  place(b, at, s.memoryMiB, whole);
  return b;
}

/** held names the shares of a GPU below its bar, where the small ones cannot be read.
 Readers have the same from the bar's buttons. */
function held(gpu) {
  if (!gpu.shares?.held.length) return null;
  return el("div", { class: "held", "aria-hidden": "true" }, ...gpu.shares.held.map((s) =>
    el("span", { "data-pod": s.owner.name ? ownerName(s.owner) : null }, el("b", {}, s.owner.name || s.owner.uid), ` ${gib(s.memoryMiB)} GiB${coresOf(s)}`)));
}

/** bar is a GPU's row to scale. */
export function bar(node, gpu, known) {
  const shares = gpu.shares;
  const row = el("div", { class: "bar", role: "group", "aria-label": `GPU ${gpu.index} of ${node.name}, ${left(node, gpu)}` });
  row.style.setProperty("--slices", shares ? 1 : gpu.memorySlices);
  if (shares) {
    let at = 0;
    for (const s of shares.held) {
      row.append(share(node, gpu, s, at, shares.memoryMiB));
      at += s.memoryMiB;
    }
    return row;
  }
  for (const span of gpu.spans || []) {
    const key = `${node.name}/${gpu.uuid}/${span.profileID}/${span.start}/${span.state}`;
    row.append(block(node, gpu, span, known && !known.has(key)));
  }
  return row;
}

export const spanKeys = (node) => new Set((node.gpus || []).flatMap((g) => (g.spans || []).map((s) => `${node.name}/${g.uuid}/${s.profileID}/${s.start}/${s.state}`)));

const shareLeft = (shares) => `${gib(shares.freeMemoryMiB)} GiB, ${shares.freeCores}% cores`;

/** left says what is free. */
function left(node, gpu) {
  if (gpu.health !== "Healthy") return gpu.reason || "unhealthy";
  if (down(node)) return down(node);
  if (gpu.mode.pending) return gpu.reason || "mode change pending";
  if (gpu.shares) return `${shareLeft(gpu.shares)} free`;
  if (!gpu.offered) return gpu.reason || "not offered";
  if (!gpu.freeSlices) return "full";
  return `${gpu.freeSlices} free, ${gpu.largestFree ? `up to ${gpu.largestFree}` : "nothing fits"}`;
}

function leftNode(node, gpu) {
  const words = left(node, gpu), as = (title, text = words) => el("span", { class: "left", title }, text);
  if (gpu.health !== "Healthy" || gpu.mode.pending || down(node)) return as(words);
  if (gpu.shares) return as(`${gpu.shares.freeMemoryMiB} MiB and ${gpu.shares.freeCores}% of the cores are free, for ${gpu.shares.freeCount} more shares`, shareLeft(gpu.shares));
  if (!gpu.offered || !gpu.freeSlices) return as(words);
  return el("span", { class: `left${gpu.largestFree ? "" : " bad"}`, title: `${words}; ${gpu.stranded} stranded; fragmentation ${gpu.fragmentation.toFixed(2)} slices` },
    el("b", {}, `${gpu.freeSlices}`), el("span", {}, " free"), el("span", { class: "more" }, gpu.largestFree ? ` · ${gpu.largestFree}` : " · nothing fits"));
}

const outages = {
  NodeGone: ["node gone", "The cluster has no Node of this name: what is drawn is what its agent last said."],
  NotReady: ["node not ready", "Kubelet does not report: the node is not Ready. What is drawn is what the agent last said."],
  NoAgent: ["agent down", "Kubelet has no devices to give: the node agent is gone, or has not registered. Running pods go on; what is drawn is what the agent last said."],
};

/** down says in a few words why nothing on a node can be started now, though its GPUs are
 drawn as the agent last reported them; "" where it can. */
const down = (node) => (node.outage ? outages[node.outage]?.[0] || node.outage : "");

const kinds = { ConfigInvalid: "bad", HardwareFailing: "bad", JournalLost: "bad", LibraryUnusable: "bad", Ready: "bad", ConfigRemarks: "quiet" };

// wrong says whether a condition asks for an operator, as pool.Wrong does.
const wrong = (c) => (c.type === "Ready" ? c.status === "False" : c.status === "True" && c.type !== "ConfigRemarks");

/** trouble reports whether a node needs somebody. */
export function trouble(node) {
  return node.problem || down(node) || (node.conditions || []).some(wrong) || (node.preparations || []).some((p) => p.phase !== "Preparing") ||
    (node.gpus || []).some((g) => g.health !== "Healthy" || g.mode.pending || (g.spans || []).some((s) => s.state === "Foreign" || s.state === "Stuck"));
}

export function badges(node) {
  const badge = (kind, words, text) => el("span", { class: `badge ${kind}`, title: words, tabindex: "0" }, text);
  const out = [];
  if (node.problem) out.push(badge("bad", node.problem, "unreadable"));
  if (down(node)) out.push(badge("bad", outages[node.outage]?.[1] || "", down(node)));
  for (const c of node.conditions || []) {
    if (!wrong(c) && !(c.type === "ConfigRemarks" && c.status === "True")) continue;
    const name = c.type === "Ready" ? `not ready: ${c.reason}` : c.type.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
    out.push(badge(kinds[c.type] || "", c.message, name));
  }
  const failing = (node.preparations || []).filter((p) => p.phase !== "Preparing");
  if (failing.length) out.push(badge("bad", failing.map((p) => `${p.name || p.uid}: ${p.phase}: ${p.reason || ""}`).join("\n"), `${failing.length} failing`));
  return out;
}

/** sentence begins with a capital. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const short = (model) => model.replace(/^NVIDIA /, "");

/** header is a node's heading, which is always there. */
export function header(node) {
  const gpus = node.gpus || [];
  const models = [...new Set(gpus.map((g) => short(g.model)))].join(", ");
  const free = gpus.reduce((n, g) => n + g.freeSlices, 0);
  const all = gpus.reduce((n, g) => n + (g.shares ? 0 : g.memorySlices), 0);
  return el("header", {}, el("h2", {}, node.name), el("span", { class: "muted" }, gpus.length ? `${gpus.length}× ${models}` : ""), ...badges(node),
    el("span", { class: "sum" }, all ? `${free} of ${all} slices free` : ""));
}

/** rows are a node's GPUs; of a node without any, what its conditions say is wrong. */
export function rows(node, known) {
  if (node.problem) return [el("p", { class: "muted" }, node.problem)];
  if (!node.gpus?.length) return (node.conditions || []).filter(wrong).map((c) => el("p", { class: "muted" }, c.message));
  return node.gpus.map((g) => {
    const sick = g.health !== "Healthy";
    return el("div", { class: `gpu${sick ? " sick" : ""}${down(node) ? " down" : ""}` },
      el("span", { class: "index", title: `${g.uuid}, mode ${g.mode.current}${sick ? ", unhealthy" : ""}` }, `${g.index}`),
      bar(node, g, known), leftNode(node, g), held(g));
  });
}
