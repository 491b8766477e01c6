// Pages work without this script; it adds local times and live updates.
"use strict";

const HIDDEN_POLL_MS = 15000; // a hidden tab gives its stream back: browsers keep few connections to one host
const pulse = document.getElementById("pulse");

const local = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short",
});
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

function ago(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.round(seconds / length)} ${unit} ago`;
  }
  return seconds < 2 ? "now" : `${Math.round(seconds)} s ago`;
}

function showTimes(root) {
  const now = Date.now();
  for (const element of root.querySelectorAll("time[datetime]")) {
    const when = new Date(element.dateTime);
    if (Number.isNaN(when.getTime())) continue;
    if (!element.title) element.title = `${local.format(when)} (${element.textContent.trim()})`;
    const today = new Date(now).toDateString() === when.toDateString();
    const exact = today ? clock.format(when) : `${day.format(when)}, ${clock.format(when)}`;
    const text = element.classList.contains("clock") ? exact : `${exact} (${ago((now - when) / 1000)})`;
    if (element.textContent !== text) element.textContent = text;
  }
}

// Rows are matched by key, so that focus, selection and hover survive; only what differs is replaced.
function replaceRows(body, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  const before = new Map([...body.children].map((row) => [row.dataset.key, row]));
  let place = body.firstElementChild;
  for (const row of [...template.content.children]) {
    const old = before.get(row.dataset.key);
    before.delete(row.dataset.key);
    if (old && old.sourceHtml === undefined) old.sourceHtml = "";
    if (old && old.sourceHtml === row.outerHTML) {
      if (old !== place) body.insertBefore(old, place); else place = place.nextElementSibling;
      continue;
    }
    row.sourceHtml = row.outerHTML;
    if (old) {
      const focused = old.contains(document.activeElement);
      if (old === place) place = place.nextElementSibling;
      old.replaceWith(row);
      if (row.nextElementSibling !== place) body.insertBefore(row, place);
      if (focused) row.querySelector("a, button, input")?.focus();
    } else {
      if (row.dataset.key !== "none") row.classList.add("fresh");
      body.insertBefore(row, place);
    }
  }
  for (const gone of before.values()) gone.remove();
}

function replace(element, html) {
  if (element && element.sourceHtml !== html) {
    element.sourceHtml = html;
    element.innerHTML = html;
  }
}

function say(text, state) {
  pulse.className = `pulse ${state}`;
  if (pulse.textContent !== text) pulse.textContent = text;
}

function showOverview(live, look) {
  for (const name of ["status", "figures", "traffic"]) replace(document.getElementById(name), look[name]);
  for (const name of ["incidents", "probes", "workers"]) replaceRows(document.getElementById(name), look[name]);
  document.title = (look.open_pages ? `(${look.open_pages}) ` : "") + live.dataset.title;
  showTimes(live);
}

function follow(address, onLook) {
  let source = null;
  let poll = null;
  const stop = () => {
    source?.close();
    source = null;
    clearInterval(poll);
    poll = null;
  };
  const start = () => {
    stop();
    if (document.hidden && address.poll) {
      poll = setInterval(async () => {
        try {
          const answer = await fetch(address.poll, { headers: { Accept: "application/json" } });
          if (answer.ok) onLook(await answer.json());
        } catch { /* the next round, or the stream when the tab is shown again, will tell */ }
      }, HIDDEN_POLL_MS);
      return;
    }
    source = new EventSource(address.stream);
    source.addEventListener("overview", (event) => {
      onLook(JSON.parse(event.data));
      say(`live · ${clock.format(new Date())}`, "live");
    });
    source.addEventListener("problem", (event) => say(JSON.parse(event.data).problem, "lost"));
    source.onerror = () => say("connection lost, trying again", "lost");
  };
  document.addEventListener("visibilitychange", start);
  window.addEventListener("pagehide", stop);
  start();
}

showTimes(document);
setInterval(() => { if (!document.hidden) showTimes(document); }, 1000);

const live = document.getElementById("live");
if (live) follow({ stream: live.dataset.stream, poll: live.dataset.poll }, (look) => showOverview(live, look));

const incident = document.getElementById("incident");
if (incident) {
  const changed = document.getElementById("changed");
  follow({ stream: `${incident.dataset.stream}&incident=${incident.dataset.incident}` }, (look) => {
    if (look.change !== null && String(look.change) !== incident.dataset.change) changed.hidden = false;
  });
}
