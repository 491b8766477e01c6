// Pages work without this script; it adds local times and live updates.
"use strict";

const COURSE_MS = 60000;
const HIDDEN_POLL_MS = 15000; // a hidden tab gives its stream back: browsers keep few connections to one host
const pulse = document.getElementById("pulse");

const local = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short",
});
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

function ago(seconds) {
  const size = Math.abs(seconds);
  if (size < 2) return "now";
  let text = `${Math.round(size)} s`;
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (size >= 2 * length) {
      text = `${Math.round(size / length)} ${unit}`;
      break;
    }
  }
  return seconds < 0 ? `in ${text}` : `${text} ago`;
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
      const chosen = old.querySelector("input[type=checkbox]");
      if (chosen?.checked) row.querySelector("input[type=checkbox]").checked = true;
      const focused = old.contains(document.activeElement) ? document.activeElement.tagName : "";
      if (old === place) place = place.nextElementSibling;
      old.replaceWith(row);
      if (row.nextElementSibling !== place) body.insertBefore(row, place);
      if (focused) row.querySelector(focused)?.focus();
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

// A longer look back is read again with the page it stands in, once a minute.
async function renewCourse(course) {
  if (document.hidden) return;
  try {
    const answer = await fetch(course.dataset.source);
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    replace(course, page.getElementById("course")?.innerHTML ?? course.innerHTML);
  } catch { /* the next round will tell */ }
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
    source.onerror = () => {
      const refused = source?.readyState === EventSource.CLOSED; // the browser does not try again by itself
      say(refused ? "not live any more: load the page again" : "connection lost, trying again", "lost");
    };
  };
  document.addEventListener("visibilitychange", start);
  window.addEventListener("pagehide", stop);
  start();
}

showTimes(document);
setInterval(() => { if (!document.hidden) showTimes(document); }, 1000);

const course = document.getElementById("course");
if (course) setInterval(() => renewCourse(course), COURSE_MS);

const live = document.getElementById("live");
if (live) follow({ stream: live.dataset.stream, poll: live.dataset.poll }, (look) => showOverview(live, look));

// Of a page that answers a form the browser keeps the page's own address, so that reloading doesn't send the form again.
const own = document.querySelector("[data-page]")?.dataset.page;
if (own && new URL(own, location.href).pathname !== location.pathname) history.replaceState(null, "", own);

// An incident under way: what has changed is put in place. The form stays while somebody fills it in, and where an open
// detail would close; then a line offers the new page instead.
const incident = document.getElementById("incident");
const INCIDENT_EVERY_MS = 3000;
if (incident) {
  const changed = document.getElementById("changed");
  let last = 0;
  let asking = false;
  const update = async (change) => {
    const page = await fetch(incident.dataset.page); // a refused change leaves another address in the bar
    if (!page.ok || page.redirected) return; // a login that has ended leads elsewhere
    const fresh = new DOMParser().parseFromString(await page.text(), "text/html");
    const state = fresh.querySelector("[data-live=form]")?.dataset.state;
    for (const part of incident.querySelectorAll("[data-live]")) {
      const other = fresh.querySelector(`[data-live=${part.dataset.live}]`);
      const busy = part.contains(document.activeElement) || part.querySelector("details[open]");
      if (!other || (part.dataset.live === "form" && state === part.dataset.state)) continue;
      if (busy) { changed.hidden = false; continue; }
      const written = part.querySelector("#note")?.value;
      part.replaceWith(other);
      const field = other.querySelector("#note");
      if (written && field) field.value = written;
    }
    if (!incident.querySelector("[data-live=growth]") && fresh.querySelector("[data-live=growth]")) changed.hidden = false;
    document.title = fresh.title;
    incident.dataset.change = change;
    showTimes(incident);
  };
  follow({ stream: incident.dataset.stream }, (look) => {
    const due = Date.now() - last >= INCIDENT_EVERY_MS;
    if (look.change === null || String(look.change) === incident.dataset.change || asking || !due) return;
    last = Date.now();
    asking = true;
    update(String(look.change)).catch(() => {}).finally(() => { asking = false; });
  });
}

// A note that is being written outlives a login that ends: this tab keeps it, for who writes it, until the page of the
// incident comes as it does after a note was taken (#noted), or until somebody logs out here.
const drafts = (() => { try { return window.sessionStorage; } catch { return null; } })(); // none where it is blocked
if (incident && drafts) {
  const place = `note ${incident.dataset.holder} ${incident.dataset.page}`;
  if (location.hash === "#noted") {
    drafts.removeItem(place);
    history.replaceState(null, "", location.pathname + location.search);
  }
  const field = document.getElementById("note");
  if (field && !field.value && !field.matches(":disabled")) field.value = drafts.getItem(place) ?? "";
  incident.addEventListener("input", (event) => {
    if (event.target.id !== "note") return;
    try {
      if (event.target.value.trim()) drafts.setItem(place, event.target.value);
      else drafts.removeItem(place);
    } catch { /* no room: the note is then only where it is written */ }
  });
}
document.querySelector("form.leave")?.addEventListener("submit", () => drafts?.clear());

// Kafka may take a while, so the queries come after the page, which says so meanwhile.
const queries = document.getElementById("queries");
if (queries) {
  const body = document.getElementById("queries-body");
  const rest = document.createElement("span");
  rest.setAttribute("role", "status");
  body.firstElementChild.append(rest);
  rest.textContent = ": being read …";
  body.setAttribute("aria-busy", "true");
  fetch(queries.dataset.source, { headers: { "X-Requested-With": "fragment" } })
    .then(async (answer) => {
      if (!answer.ok || answer.redirected) throw new Error(`the console answered ${answer.status}`);
      body.innerHTML = await answer.text();
      showTimes(queries);
    })
    .catch(() => { rest.textContent = ": they did not come; follow the link to try again"; })
    .finally(() => body.removeAttribute("aria-busy"));
}

const list = document.getElementById("list");
if (list) {
  const body = document.getElementById("incidents");
  const all = document.getElementById("all");
  const boxes = () => [...body.querySelectorAll("input[type=checkbox]")];
  const tell = () => {
    const count = boxes().filter((box) => box.checked).length;
    document.getElementById("chosen").textContent = count ? `${count} chosen` : "none chosen yet";
    document.getElementById("apply").disabled = count === 0;
    all.checked = count > 0 && count === boxes().length;
  };
  all.hidden = false;
  all.addEventListener("change", () => { for (const box of boxes()) box.checked = all.checked; tell(); });
  body.addEventListener("change", tell);
  document.querySelector(".filters").addEventListener("change", (event) => {
    if (event.target.matches("select, input[type=checkbox]")) event.currentTarget.requestSubmit();
  });
  let asking = false;
  const update = async (look) => {
    if (asking || String(look.revision) === list.dataset.revision) return;
    asking = true;
    try {
      const answer = await fetch(list.dataset.rows);
      if (!answer.ok) return;
      const found = await answer.json();
      replaceRows(body, found.rows);
      replace(document.getElementById("pager"), found.pager);
      document.getElementById("count").textContent = found.count;
      list.dataset.revision = found.revision;
      showTimes(body);
      tell();
    } finally {
      asking = false;
    }
  };
  follow({ stream: list.dataset.stream }, (look) => { update(look).catch(() => {}); });
  tell();
}

// Without the script, or where the browser lends no clipboard, it is a link like any other.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("#copy");
  if (!link || !navigator.clipboard || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  navigator.clipboard.writeText(link.href).then(() => { link.textContent = "Copied"; }, () => { location.href = link.href; });
});

// Keys. Never while something is being typed, nor with a modifier.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const typing = event.target.matches("textarea, select, input:not([type=checkbox])");
  if (typing) return;
  const rows = [...document.querySelectorAll("#incidents tr .what a")];
  const at = rows.findIndex((link) => link.closest("tr").contains(document.activeElement));
  const actions = {
    j: () => rows[Math.min(at + 1, rows.length - 1)]?.focus(),
    k: () => rows[Math.max(at - 1, 0)]?.focus(),
    x: () => rows[at]?.closest("tr").querySelector("input[type=checkbox]")?.click(),
    "/": () => document.getElementById("q")?.focus(),
    u: () => { if (incident) location.href = incident.dataset.list; },
    a: () => {
      const name = document.getElementById("by");
      const button = document.getElementById("acknowledge") ?? (list ? document.getElementById("apply") : null);
      if (!name || !button || button.disabled) return;
      if (list) document.getElementById("action").value = "acknowledge";
      if (name.value.trim()) button.click(); else name.focus();
    },
  };
  if (Object.hasOwn(actions, event.key)) {
    event.preventDefault();
    actions[event.key]();
  }
});
