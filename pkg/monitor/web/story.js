// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// The dialog that tells one pod's story.

import { bar, el, sentence } from "./draw.js";

const stepNames = ["created", "decided", "published", "bound", "prepared", "started"];
const stepWords = {
  created: "Created", decided: "Placed", published: "Written", bound: "Bound", prepared: "Prepared", started: "Started",
};

const clock = (text) => new Date(text).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function took(seconds) {
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  return seconds < 90 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds / 60)} min`;
}

function stateOf(story) {
  if (story.ending) return ["ending", "warn"];
  if (story.preparation?.phase === "Refused") return ["refused by the node", "bad"];
  if (story.preparation?.phase === "Failing") return ["failing", "bad"];
  if (!story.node) return ["waiting", "warn"];
  if (story.containers.length && story.containers.every((c) => c.state === "running")) return ["running", "good"];
  return [story.phase.toLowerCase(), "warn"];
}

function steps(story) {
  const known = Object.fromEntries(story.steps.map((s) => [s.name, s]));
  const last = Math.max(...stepNames.map((name, i) => (known[name] ? i : -1)));
  return el("ol", { class: "steps" }, ...stepNames.map((name, i) => {
    const s = known[name];
    if (!s && i < last) return null; // taken, and nobody remembers when
    return el("li", { class: s ? "done" : "" }, el("b", {}, stepWords[name]),
      s ? el("time", { datetime: s.at, title: `${s.at}, ${s.from === "monitor" ? "seen by this monitor" : "as the API server has it"}` }, clock(s.at)) : el("time", {}, "not yet"),
      s?.seconds !== undefined ? el("span", { class: "took" }, `after ${took(s.seconds)}`) : null);
  }).filter(Boolean));
}

function table(kind, rows) {
  return el("table", { class: kind }, el("tbody", {}, ...rows));
}

// where says what the pod has, GPU by GPU.
function where(story, node) {
  const out = [];
  const byGPU = new Map();
  for (const place of story.places || []) byGPU.set(place.gpu, [...(byGPU.get(place.gpu) || []), place]);
  for (const [uuid, places] of byGPU) {
    for (const { span, share, index, model } of places) {
      const what = span ? `${span.profile} at slice ${span.start}` : `${share.memoryMiB} MiB${share.cores ? ` and ${share.cores}% of the cores` : ""}, shared in software,`;
      out.push(el("p", {}, `${what} of GPU ${index}, node ${story.node} (${model})`, span?.uuid ? el("span", { class: "muted" }, `  ${span.uuid}`) : ""));
    }
    const gpu = node?.gpus?.find((g) => g.uuid === uuid);
    if (!gpu) continue;
    const row = bar(node, gpu);
    for (const b of row.children) {
      b.disabled = true;
      b.classList.add(b.dataset.pod === `${story.namespace}/${story.name}` ? "lit" : "dim");
    }
    out.push(row);
  }
  return out;
}

const isHidden = (text) => /^message hidden: /.test(text || "");

/** tell fills the dialog. What the server hides is a star, and one footnote says why. */
export function tell(dialog, story, node) {
  const hidden = [...story.containers, ...story.events].map((x) => x.message).find(isHidden);
  const said = (message) => (isHidden(message) ? "*" : message || "");
  const [state, kind] = stateOf(story);
  const body = [];
  const section = (title, ...content) => { if (content.length) body.push(el("h3", {}, title), ...content); };
  if (story.waiting) {
    section("Why it waits", el("p", {}, story.waiting.reason ? sentence(story.waiting.reason) : (story.waiting.gated ? "Its scheduling gates are not removed yet." : "The scheduler has not tried it yet.")));
  }
  if (story.preparation?.reason) section("What the node says", el("p", {}, story.preparation.reason));
  section("Where", ...where(story, node));
  if (story.why) section("Why there", el("p", {}, story.why));
  section("Its way", steps(story));
  section("Asked for", el("p", {}, story.request));
  section("Containers", ...(story.containers.length ? [table("containers", story.containers.map((c) => el("tr", {},
    el("td", {}, c.name), el("td", {}, c.state || "not started"), el("td", {}, [c.reason, said(c.message)].filter(Boolean).join(": "), c.restarts ? ` ${c.restarts} restarts` : ""))))] : []));
  section("Events", story.events.length ? table("events", story.events.map((e) => el("tr", { class: e.type },
    el("th", { scope: "row" }, clock(e.time)), el("td", {}, e.reason), el("td", {}, said(e.message), e.count ? ` (${e.count} times)` : "")))) : el("p", { class: "muted" }, story.eventsMissing || "The cluster keeps none any more."));
  if (hidden) body.push(el("p", { class: "muted footnote" }, `* ${sentence(hidden)}.`));
  const scroll = dialog.scrollTop;
  const close = el("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "Close");
  const keep = document.activeElement?.getAttribute?.("aria-label") === "Close";
  dialog.replaceChildren(
    el("header", {}, el("h2", { id: "story-title" }, story.name), el("span", { class: "muted" }, story.namespace), el("span", { class: `state ${kind}` }, state), close),
    el("div", {}, ...body));
  dialog.scrollTop = scroll;
  if (keep) close.focus();
}

/** gone says that the pod is no more. */
export function gone(dialog, name) {
  const close = el("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(el("header", {}, el("h2", { id: "story-title" }, name), el("span", { class: "state" }, "gone"), close),
    el("div", {}, el("p", {}, "The pod has ended, or there is none of this name.")));
}
