/* The demo page: who is in a channel, as a hall of windows. All protocol is in rollcall.js. */

import { Rollcall } from "./rollcall.js";
import { recall, remember } from "./storage.js";
import "./theme.js";
import { events } from "./wires/events.js";
import { phoenix } from "./wires/phoenix.js";
import { pusher } from "./wires/pusher.js";
import { supabase } from "./wires/supabase.js";

const WIRES = { phoenix, supabase, pusher, events };

const SHOWN_MEMBERS = 200;
const SHOWN_LINES = 60;
const FEED_EVERY_MS = 300;
const LINES_AT_ONCE = 8; // More changes than this at once become one line with a number.
const REST_EVERY_MS = 3_000;

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// ---- What is remembered

const randomHex = (bytes) => Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** What `store` keeps under `key`, made when it is first asked for. */
function own(store, key, make) {
  const known = recall(store, key);
  if (typeof known === "string" && known) return known;
  const made = make();
  remember(store, key, made);
  return made;
}

/** One id for all tabs of this browser, so that they are one member. */
const ownId = () => own(localStorage, "user", () => `u-${randomHex(6)}`);
/** One key for this tab, kept when it reloads. A duplicated tab has the same; the server tells them apart. */
const resume = own(sessionStorage, "resume", () => randomHex(16));

function friendlyName() {
  const pick = (words) => words[Math.floor(Math.random() * words.length)];
  return `${pick("Quiet Bright Early Gentle Merry Nimble Patient Plucky Rapid Sunny Steady Witty Amber Cobalt Silver Velvet".split(" "))} `
    + pick("Heron Otter Lynx Wren Badger Finch Hare Marten Newt Owl Plover Robin Seal Stoat Swift Tern".split(" "));
}

const claimed = asked.get("user") || ownId();
if (asked.has("token")) remember(sessionStorage, "session", { token: asked.get("token") });
let session = recall(sessionStorage, "session") ?? recall(localStorage, "session");
let me = session?.user ?? claimed;

/** What we show: kept for this user, so that a reload and a second tab show the same. */
const profileKey = `profile.${claimed}`;
let profile = { name: "", status: "", availability: "available", at: 0, ...recall(localStorage, profileKey) };
const isKnown = asked.has("name") || profile.name !== "";
if (!profile.name || (asked.has("name") && asked.get("name") !== profile.name)) {
  profile = { ...profile, name: (asked.get("name") || friendlyName()).slice(0, 40), at: Date.now() };
}

function change(part) {
  if (Object.entries(part).every(([key, value]) => profile[key] === value)) return;
  profile = { ...profile, ...part, at: Date.now() };
  remember(localStorage, profileKey, profile);
  if (room && !$("watch").checked) room.track(meta());
}
const meta = () => ({ ...profile, color: `hsl(${hue(me)} 60% 45%)` });

// ---- The connection

const protocol = $("protocol");
protocol.value = asked.get("protocol") in WIRES ? asked.get("protocol") : "phoenix";
const server = new Rollcall(() => (session ? { token: session.token } : {}), WIRES[protocol.value]);
let room = null;
let topic = null;
let isSynced = false;

server.onstate = (state) => {
  if (state.name === "online") notice(null);
  if (state.name === "reconnecting" && !state.opened) explainRefusal();
  showState();
  $("announcer").textContent = stateWords(state)[0];
  repaint();
};

function stateWords({ name, retryAt }) {
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  return {
    online: ["Online", "Disconnect"],
    connecting: ["Connecting…", "Disconnect"],
    reconnecting: ["Reconnecting", "Try now", seconds ? ` in ${seconds} s` : "…"],
    offline: ["Offline", "Connect"],
  }[name];
}

let countdown;
function showState() {
  clearTimeout(countdown);
  const [words, action, rest = ""] = stateWords(server.state);
  $("state").dataset.state = server.state.name;
  $("state-text").textContent = words + rest;
  $("connection-button").textContent = action;
  if (server.state.name === "reconnecting") countdown = setTimeout(showState, 250);
}

$("connection-button").onclick = () => (["online", "connecting"].includes(server.state.name) ? server.disconnect() : server.connect());

// The browser knows better than a timer when it is worth another try.
const hurry = () => server.state.name === "reconnecting" && server.connect();
addEventListener("online", hurry);
addEventListener("pageshow", hurry);
document.addEventListener("visibilitychange", () => document.hidden || (hurry(), askRest()));

/** A browser does not learn why an upgrade was refused. A plain request does. */
async function explainRefusal() {
  const status = await fetch(countPath(), headers()).then((answer) => answer.status, () => null);
  if (server.state.name === "online" || status === null) return; // Away altogether: reconnecting says so.
  if (status === 401) return signUp();
  if (status === 403) return notice("The server does not accept connections from this page's origin.");
  if (status === 429) return notice("Too many attempts from this address. The next one follows by itself.");
  if (status < 500) notice("The server answers, yet the WebSocket does not open. Does a proxy in between pass upgrades on?");
}

/** In session mode everyone needs a session; where the server allows it, an anonymous one will do. */
let isSigningUp = false;
async function signUp({ byHand = false } = {}) {
  if (isSigningUp || (!byHand && !$("notice-button").hidden)) return;
  isSigningUp = true;
  const answer = await fetch("/auth/v1/signup", { method: "POST", headers: { "content-type": "application/json" }, body: "{}" }).catch(() => null);
  const body = answer?.ok ? await answer.json().catch(() => null) : null;
  isSigningUp = false;
  if (!body?.access_token) {
    const why = answer ? `it answered ${answer.status}` : "it did not answer";
    return notice(`This server wants a session, and gave no anonymous one (${why}). Open this page with ?token=… of a session you have.`, true);
  }
  if (session) note("note", "The server refused the session of before; you go on with a new, anonymous one");
  session = { token: body.access_token, user: body.user?.id };
  remember(sessionStorage, "session", session);
  remember(localStorage, "session", session);
  me = session.user ?? claimed;
  notice(null);
  hurry();
  repaint();
}
$("notice-button").onclick = () => signUp({ byHand: true });

function notice(text, maySignUp = false) {
  $("notice").hidden = !text;
  $("notice-text").textContent = text ?? "";
  $("notice-button").hidden = !maySignUp;
}

async function whoAmI() {
  const answer = await fetch("/auth/v1/user", headers()).catch(() => null);
  const body = answer?.ok ? await answer.json().catch(() => null) : null;
  const id = body?.id ?? body?.user?.id;
  if (!id) return;
  me = session.user = id;
  repaint();
}

// ---- Coming in and going out

function enter(name) {
  if (room) leave();
  topic = name;
  isSynced = false;
  remember(localStorage, profileKey, profile); // A reload shows the same.
  room = server.join(name, { user: me, meta: meta(), observe: $("watch").checked, resume });
  room.onchange = onChange;
  room.onwave = (payload) => note("wave", text(payload?.name) || "Somebody", "waves");
  room.onerror = (reason) => note("note", `The server says: ${reason}`);
  if (server.state.name === "offline") server.connect();
  remember(sessionStorage, "out", false);
  const url = new URL(location);
  url.searchParams.set("channel", name);
  url.searchParams.delete("token");
  protocol.value === "phoenix" ? url.searchParams.delete("protocol") : url.searchParams.set("protocol", protocol.value);
  url.hash = "";
  history.replaceState(null, "", url);
  showControls();
  repaint();
  askRest();
}

function leave() {
  room.leave();
  note("note", `You left ${topic}`);
  room = topic = null;
  remember(sessionStorage, "out", true);
  showControls();
  repaint();
  askRest();
}

$("entry").onsubmit = (event) => {
  event.preventDefault();
  const name = $("channel").value.trim();
  $("name").value = $("name").value.trim() || profile.name;
  change({ name: $("name").value });
  remember(localStorage, profileKey, profile);
  const hadFocus = document.activeElement === $("join");
  if (topic !== name) enter(name);
  showControls();
  if (hadFocus) $("leave").focus();
};
$("leave").onclick = () => {
  leave();
  $("join").focus();
};
protocol.onchange = () => {
  server.use(WIRES[protocol.value]);
  note("note", `You connect through ${protocol.selectedOptions[0].text}`);
  if (room) enter(topic);
};
$("wave").onclick = () => {
  room.wave({ name: profile.name });
  note("wave", "You", "wave");
};
$("watch").onchange = () => {
  remember(sessionStorage, "watch", $("watch").checked);
  if (room) $("watch").checked ? room.untrack() : room.track(meta());
  showControls();
};
$("entry").oninput = showControls;
$("channel").onchange = () => room || (repaint(), askRest());

/** "Join" while outside; inside only when a field says something new. */
function showControls() {
  const moves = $("channel").value.trim() !== topic;
  const renames = $("name").value.trim() !== profile.name;
  $("join").textContent = !room ? ($("watch").checked ? "Watch" : "Join") : moves ? "Go there" : "Rename";
  $("join").hidden = Boolean(room) && !moves && !renames;
  $("leave").hidden = !room;
  $("wave").hidden = !room || protocol.value === "events";
}

$("status").onsubmit = (event) => {
  event.preventDefault();
  change({ status: $("status-input").value.trim() });
};
$("availability").onchange = (event) => change({ availability: event.target.value });

/** Another tab of ours said something new: all our tabs say the same. */
addEventListener("storage", ({ key, newValue }) => {
  if (key !== `rollcall.${profileKey}` || !newValue) return;
  profile = { ...profile, ...recall(localStorage, profileKey) };
  if (room && !$("watch").checked) room.track(meta());
  showProfile();
});

function showProfile() {
  $("name").value = profile.name;
  $("status-input").value = profile.status;
  const choice = [...$("availability").elements].find((radio) => radio.value === profile.availability);
  if (choice) choice.checked = true;
  showControls();
}

// ---- What others show. It comes from strangers: it is only ever set as text.

const AVAILABILITY = ["available", "busy", "away"];
const text = (value) => (typeof value === "string" ? value.trim().slice(0, 200) : "");

/** The newest of a member's metas speaks for it. */
function face(user, metas) {
  const newest = metas.reduce((best, next) => ((Number(next.at) || 0) >= (Number(best.at) || 0) ? next : best));
  const said = text(newest.status);
  const isWord = AVAILABILITY.includes(said.toLowerCase());
  const availability = isWord ? said.toLowerCase() : newest.availability;
  return {
    name: text(newest.name) || text(newest.user_info?.name) || user,
    status: isWord ? "" : said,
    availability: AVAILABILITY.includes(availability) ? availability : "available",
  };
}

function initials(name) {
  const words = name.split(/\s+/).map((word) => word.match(/[\p{L}\p{N}\p{Extended_Pictographic}]/u)?.[0]).filter(Boolean);
  return words.length ? (words[0] + (words.length > 1 ? words.at(-1) : "")).toUpperCase() : "?";
}

function hue(user) {
  let hash = 2166136261;
  for (const char of user) hash = Math.imul(hash ^ char.codePointAt(0), 16777619);
  hash = Math.imul(hash ^ (hash >>> 15), 0x85ebca6b); // Ids that differ in one letter get colours far apart.
  return ((hash ^ (hash >>> 13)) >>> 0) % 360;
}

// ---- What happened

function onChange(changes, isSnapshot) {
  const isFirst = isSnapshot && !isSynced;
  isSynced = true;
  for (const change of changes) {
    if (tiles.has(change.user)) dirty.add(change.user);
    if (!isFirst || change.user === me) tell(change);
  }
  repaint();
  askRestIn(Math.max(250, restAt + 2_000 - Date.now())); // After a change a little earlier.
}

function tell({ type, user, metas, before }) {
  const was = before.length ? face(user, before) : null;
  const is = metas.length ? face(user, metas) : was;
  const who = user === me ? "You" : is.name;
  if (type === "join") note("join", who, `came in${user === me ? ` to ${topic}` : ""}`);
  if (type === "leave") note("leave", who, user === me ? "went out of sight" : "left");
  if (type === "more") note("tab", who, "opened another tab");
  if (type === "fewer") note("tab", who, "closed a tab");
  if (!was || type === "leave") return;
  if (is.name !== was.name) note("update", was.name, `is now called ${is.name}`);
  if (is.status !== was.status || is.availability !== was.availability) {
    glowing.add(user);
    note("update", who, `${user === me ? "are" : "is"} ${is.availability}${is.status ? `: ${is.status}` : ""}`);
  }
}

const lines = [];
function note(kind, who, what = "") {
  lines.push({ kind, who, what, at: new Date() });
  repaint();
}

let fedAt = 0;

function paintFeed() {
  if (lines.length === 0) return;
  const early = fedAt + FEED_EVERY_MS - performance.now();
  if (early > 0) return void setTimeout(repaint, early);
  fedAt = performance.now();
  const byKind = Map.groupBy ? Map.groupBy(lines, (line) => line.kind) : new Map([["all", lines]]);
  const verbs = { join: "members came in", leave: "members left", update: "updates", tab: "tabs opened or closed" };
  const shown = lines.length <= LINES_AT_ONCE ? lines : [...byKind].flatMap(([kind, all]) =>
    (all.length > 2 && verbs[kind] ? [{ kind, who: String(all.length), what: verbs[kind], at: all[0].at }] : all.slice(-LINES_AT_ONCE)));
  const fresh = shown.map(({ kind, who, what, at }) => {
    const line = document.createElement("li");
    line.dataset.kind = kind;
    line.className = "fresh";
    const time = document.createElement("time");
    time.dateTime = at.toISOString();
    time.textContent = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
    const words = document.createElement("span");
    const name = document.createElement(what ? "b" : "span");
    name.textContent = who;
    words.append(name, what && ` ${what}`);
    line.append(time, words);
    return line;
  });
  lines.length = 0;
  $("feed").prepend(...fresh.reverse());
  while ($("feed").childElementCount > SHOWN_LINES) $("feed").lastElementChild.remove();
}

// ---- Painting: whatever happens between two frames is painted once

const tiles = new Map();
const dirty = new Set();
const glowing = new Set();
let frame = 0;
let slowFrame = 0;

function paint() {
  cancelAnimationFrame(frame);
  clearTimeout(slowFrame);
  frame = slowFrame = 0;
  paintFeed();
  paintHead();
  paintWall();
}

/** A hidden tab has no frames: its timer keeps the title right and the queues short. */
function repaint() {
  frame ||= requestAnimationFrame(paint);
  slowFrame ||= setTimeout(paint, 1_000);
}

function paintHead() {
  const rest = restPath === countPath() ? restOnline : null;
  const live = room ? room.roster.size : (rest ?? 0);
  const where = topic ?? $("channel").value.trim();
  setText($("online"), live.toLocaleString("en").replaceAll(",", "\u202f"));
  setText($("here"), room ? "here now in" : "inside");
  setText($("where"), where);
  setText($("rest"), rest ?? "–");
  const agrees = !room || !isSynced || rest === null ? "unknown" : rest === room.roster.size ? "yes" : "no";
  $("agree").dataset.agree = agrees;
  setText($("agree-text"), rest === null ? ", not reachable" : !room ? ". Join to see who" : { yes: ", the same as here", no: ", catching up", unknown: "" }[agrees]);
  paintShades(room ? 0 : (rest ?? 0));
  document.title = room ? `(${live}) ${where} · Rollcall` : "Rollcall";
}

/** At the door we know how many are inside, not who: that many windows, lit and without a face. */
function paintShades(count) {
  const shades = $("shades");
  while (shades.childElementCount > Math.min(count, 24)) shades.lastElementChild.remove();
  while (shades.childElementCount < Math.min(count, 24)) shades.append(make("span", "shade"));
  shades.hidden = count === 0;
}

function paintWall() {
  const roster = room?.roster ?? new Map();
  const wanted = new Set();
  if (roster.has(me)) wanted.add(me);
  for (const user of roster.keys()) {
    if (wanted.size >= SHOWN_MEMBERS) break;
    wanted.add(user);
  }
  const going = [...tiles.keys()].filter((user) => !wanted.has(user));
  const coming = [...wanted].filter((user) => !tiles.has(user));
  const isGentle = !calm.matches && going.length <= 30;

  const place = () => {
    for (const user of going) {
      const tile = tiles.get(user);
      tiles.delete(user);
      if (!isGentle) tile.remove();
      else retire(tile);
    }
    coming.forEach((user, index) => {
      tiles.set(user, makeTile(user, index));
      dirty.add(user);
    });
    let next = $("wall").firstElementChild;
    for (const user of wanted) {
      while (next?.classList.contains("going")) next = next.nextElementSibling;
      const tile = tiles.get(user);
      if (tile === next) next = next.nextElementSibling;
      else $("wall").insertBefore(tile, next);
    }
  };
  if (coming.length || going.length) moving(place);

  for (const user of dirty) if (tiles.has(user)) fillTile(tiles.get(user), user, roster.get(user));
  dirty.clear();
  glowing.clear();
  $("wall").hidden = $("wall").childElementCount === 0;
  $("more").hidden = roster.size <= wanted.size;
  setText($("more"), `+${roster.size - wanted.size} more`);
  document.querySelector(".room").dataset.stale = String(Boolean(room) && server.state.name !== "online");
  $("empty").hidden = wanted.size > 0;
  setText($("empty"), !room ? "You are at the door. Pick a name and join, or watch from here without being seen."
    : isSynced ? "Nobody is here. Open this channel in another tab, and someone will be." : "Asking who is here…");
}

function makeTile(user, index) {
  const tile = make("li", "member coming");
  tile.dataset.testid = "member";
  tile.dataset.user = user;
  tile.style.setProperty("--hue", hue(user));
  tile.style.setProperty("--delay", `${Math.min(index, 40) * 18}ms`);
  const bay = make("div", "bay");
  const tabs = make("span", "tabs");
  tabs.dataset.testid = "tabs";
  bay.append(make("span", "face"), tabs, make("span", "pip"));
  bay.querySelector(".face").ariaHidden = "true";
  tile.append(bay, make("span", "who"), make("span", "visually-hidden"), make("span", "says"));
  return tile;
}

function fillTile(tile, user, metas) {
  const { name, status, availability } = face(user, metas);
  const [bay, who, hidden, says] = tile.children;
  const [pane, tabs] = bay.children;
  tile.classList.toggle("me", user === me);
  tile.dataset.availability = availability;
  tile.title = [name, availability, status].filter(Boolean).join(" · ");
  setText(pane, initials(name));
  setText(tabs, `×${metas.length}`);
  tabs.hidden = metas.length < 2;
  tabs.title = `${metas.length} tabs or devices`;
  setText(who, name);
  setText(hidden, `, ${availability}`);
  setText(says, status);
  if (glowing.has(user)) tile.classList.add("changed");
}

function make(tag, className) {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}
function setText(element, value) {
  if (element.textContent !== String(value)) element.textContent = value;
}

/** Fades out where it stands; then the others close the gap. */
function retire(tile) {
  tile.classList.add("going");
  tile.ariaHidden = "true";
  delete tile.dataset.testid;
  delete tile.dataset.user;
  retired.push(tile);
  retirement ||= setTimeout(() => {
    retirement = 0;
    moving(() => retired.splice(0).forEach((gone) => gone.remove()));
    repaint();
  }, 300);
}
const retired = [];
let retirement = 0;

/** Does a change of the wall, and lets tiles that it moved glide from where they were. */
function moving(mutate) {
  const isWorthIt = !calm.matches && !document.hidden && tiles.size <= 100;
  const before = isWorthIt ? new Map([...tiles.values()].map((tile) => [tile, tile.getBoundingClientRect()])) : new Map();
  mutate();
  const moved = [...before].map(([tile, from]) => {
    const to = tile.getBoundingClientRect();
    return [tile, from.left - to.left, from.top - to.top];
  });
  for (const [tile, x, y] of moved) {
    if (tile.isConnected && (x || y)) tile.animate([{ translate: `${x}px ${y}px` }, { translate: "0 0" }], { duration: 350, easing: "cubic-bezier(0.2, 0, 0, 1)" });
  }
}

$("wall").addEventListener("animationend", ({ target, animationName }) => {
  const finished = { light: "coming", glow: "changed" }[animationName];
  if (finished) target.closest(".member")?.classList.remove(finished);
});

// ---- The same number, asked over REST: gently, and only while someone looks

let restOnline = null;
let restPath = "";
let restTimer = 0;
let restDue = Infinity;
let restAt = 0;

const countPath = () => `/v1/channels/${encodeURIComponent(topic ?? ($("channel").value.trim() || "lobby"))}/presence/count`;
const headers = () => (session ? { headers: { authorization: `Bearer ${session.token}` } } : {});

async function askRest() {
  clearTimeout(restTimer);
  restDue = Infinity;
  if (document.hidden) return;
  restAt = Date.now();
  const path = countPath();
  const answer = await fetch(path, { ...headers(), cache: "no-store" }).catch(() => null);
  const body = answer?.ok ? await answer.json().catch(() => null) : null;
  restOnline = body?.online ?? null;
  restPath = path;
  repaint();
  askRestIn(REST_EVERY_MS);
}

/** What is due earlier stays: a channel that never rests must not put the question off for ever. */
function askRestIn(ms) {
  if (Date.now() + ms >= restDue) return;
  clearTimeout(restTimer);
  restDue = Date.now() + ms;
  restTimer = setTimeout(askRest, ms);
}

// ---- Link
$("share").onclick = async () => {
  const link = new URL(location.pathname, location);
  link.searchParams.set("channel", topic ?? $("channel").value.trim());
  const isCopied = await navigator.clipboard?.writeText(link.href).then(() => true, () => false);
  $("share").textContent = isCopied ? "Link copied" : link.href;
  $("announcer").textContent = isCopied ? "Link copied" : "";
  setTimeout(() => ($("share").textContent = "Copy a link to this channel"), isCopied ? 2_000 : 15_000);
};

// ---- Start

$("channel").value = asked.get("channel") || decodeURIComponent(location.hash.slice(1)) || "lobby";
$("watch").checked = Boolean(recall(sessionStorage, "watch")); // A reload must not make a watcher seen.
showProfile();
if (session && !session.user) whoAmI();
server.connect();
if (isKnown && !recall(sessionStorage, "out")) enter($("channel").value);
askRest();
