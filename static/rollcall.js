/**
 * rollcall.js: a client for Rollcall, and a description of the protocol it speaks.
 *
 *     const server = new Rollcall();
 *     server.connect();
 *     const room = server.join("lobby", { user: "u-ada", meta: { name: "Ada" } });
 *     room.onchange = () => console.log([...room.roster.keys()], "are here");
 *     room.track({ name: "Ada", status: "back in five" });   // others see it at once
 *     room.wave({ from: "Ada" });                             // told to all others, whatever they speak
 *     room.leave();
 *
 * This is Phoenix Channels, version 2.0.0. Every message, in both directions, is one JSON array:
 *
 *     [join_ref, ref, topic, event, payload]
 *
 * `ref` is a string we make up for a question; its answer is a `phx_reply` that carries the same one.
 * `join_ref` is the `ref` of the `phx_join` with which we entered the topic. It tells messages that
 * belong to this visit from late ones of an earlier visit. The wires beside this file carry such messages over other
 * protocols.
 */

import { phoenix } from "./wires/phoenix.js";

const HEARTBEAT_MS = 30_000;
const ANSWER_MS = 10_000;

/** One WebSocket that stays open: it beats, notices silence, comes back and joins its channels again. */
export class Rollcall {
  /** Told of each new state: "connecting", "online", "reconnecting" (with `retryAt`), "offline". */
  onstate = () => {};
  state = { name: "offline" };

  #query; #wire; #socket; #timer; #beat; #attempt = 0; #lastRef = 0; #unanswered; #channels = new Map();

  /** `query` is called for each connection, so that a token may be renewed between two of them. */
  constructor(query = () => ({}), wire = phoenix) {
    this.#query = query;
    this.#wire = wire;
  }

  /** Goes over to another protocol, with all channels. */
  use(wire) {
    this.#wire = wire;
    if (this.state.name === "offline") return;
    this.#drop();
    this.state = { name: "offline" };
    this.connect();
  }

  /** Connects now. Also ends the waiting between two attempts. */
  connect() {
    if (["online", "connecting"].includes(this.state.name)) return;
    clearTimeout(this.#timer);
    let opened = false;
    const socket = this.#wire(this.#query(), {
      open: () => {
        if (socket !== this.#socket) return;
        opened = true;
        this.#beat = setInterval(() => this.#heartbeat(), HEARTBEAT_MS);
        this.#become({ name: "online" });
        for (const channel of this.#channels.values()) channel.enter();
      },
      message: ([joinRef, ref, topic, event, payload]) => {
        if (socket !== this.#socket) return;
        this.#attempt = 0; // Not in open: a server that opens and closes at once must not be hammered.
        if (ref === this.#unanswered) this.#unanswered = null;
        this.#channels.get(topic)?.receive(joinRef, ref, event, payload);
      },
      close: (code) => {
        if (socket === this.#socket) this.#retry({ opened, code });
      },
    });
    this.#socket = socket;
    this.#become({ name: "connecting" });
  }

  /** Closes without a goodbye, so members stay for the server's grace; `Channel.leave()` is immediate. */
  disconnect() {
    this.#drop();
    this.#become({ name: "offline" });
  }

  /**
   * Enters a topic. With `observe` you see who is there and are not there yourself. `resume` is a key of your
   * own making, kept over a reload: by it the server knows that you are back, and shows nobody a leave.
   */
  join(topic, { user, meta = {}, observe = false, resume }) {
    this.#channels.get(topic)?.leave();
    const send = (joinRef, event, payload) => this.#send(joinRef, topic, event, payload);
    const channel = new Channel({ user, meta, observe, resume }, send, () => this.#channels.delete(topic));
    this.#channels.set(topic, channel);
    if (this.state.name === "online") channel.enter();
    return channel;
  }

  #send(joinRef, topic, event, payload) {
    const ref = String(++this.#lastRef);
    if (this.state.name === "online") {
      this.#socket.send([event === "phx_join" ? ref : joinRef, ref, topic, event, payload]);
    }
    return ref;
  }

  /** Half-open connections look fine to the browser. One unanswered heartbeat, and we start afresh. */
  #heartbeat() {
    if (this.#unanswered) return this.#retry({ opened: true });
    this.#unanswered = this.#send(null, "phoenix", "heartbeat", {});
  }

  /** Half a second doubling up to 15 s, at random within that, so that a crowd does not return as one. */
  #retry({ opened, code }) {
    this.#drop();
    const restarting = code === 1012; // The server said goodbye properly: it, or a sister, is soon back.
    const ceiling = restarting ? 1_000 : Math.min(15_000, 500 * 2 ** this.#attempt++);
    const delay = ceiling * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(() => this.connect(), delay);
    this.#become({ name: "reconnecting", retryAt: Date.now() + delay, opened, code });
  }

  #drop() {
    clearTimeout(this.#timer);
    clearInterval(this.#beat);
    this.#unanswered = null;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #become(state) {
    this.state = state;
    this.onstate(state);
  }
}

/** One topic and its roster. Made by `Rollcall.join()`. */
class Channel {
  /** Who is here: a map of user to metas, one meta for each of the user's connections. */
  roster = new Map();
  /** Told what each message changed: `[{ type, user, metas, before }]`, see `difference()`. */
  onchange = (_changes, _isSnapshot) => {};
  onerror = (_reason) => {};
  /** Told what somebody else waved. */
  onwave = (_payload) => {};

  #me; #send; #forget; #joinRef = null; #joined = false; #asked; #waiting = []; #timer;

  constructor(me, send, forget) {
    [this.#me, this.#send, this.#forget] = [me, send, forget];
  }

  /** Shows `meta` to the others, instead of what we showed before. */
  track(meta) {
    this.#say({ ...this.#me, meta, observe: false });
  }

  /** Goes out of sight, and goes on watching. */
  untrack() {
    this.#say({ ...this.#me, observe: true });
  }

  /** Tells all others in the channel. */
  wave(payload) {
    this.#send(this.#joinRef, "broadcast", { type: "broadcast", event: "wave", payload });
  }

  leave() {
    clearTimeout(this.#timer);
    this.#send(this.#joinRef, "phx_leave", {});
    this.#forget();
  }

  /** Joins. Called for each new connection; `track` or `untrack` since then is in the request already. */
  enter() {
    clearTimeout(this.#timer);
    const { user, meta, observe, resume } = (this.#asked = this.#me);
    this.#joined = false;
    this.#waiting = []; // Diffs may come before the snapshot they build on.
    this.#joinRef = this.#send(null, "phx_join", { user_id: user, meta, resume, ...(observe && { observe }) });
    this.#timer = setTimeout(() => this.enter(), ANSWER_MS);
  }

  receive(joinRef, ref, event, payload) {
    if (joinRef !== null && joinRef !== this.#joinRef) return; // Of an earlier visit.
    if (event === "phx_reply" && payload.status === "error") this.onerror(payload.response.reason);
    if (event === "phx_reply" && ref === this.#joinRef) {
      clearTimeout(this.#timer);
      this.#joined = payload.status === "ok";
      if (!this.#joined) this.#timer = setTimeout(() => this.enter(), ANSWER_MS);
      else if (this.#me !== this.#asked) this.#say(this.#me);
    }
    if (event === "phx_error") this.#timer = setTimeout(() => this.enter(), 500 + Math.random() * 1_000);
    if (event === "broadcast" && payload.event === "wave") this.onwave(payload.payload);
    if (event === "presence_state") this.#replace(payload);
    if (event === "presence_diff") this.#waiting ? this.#waiting.push(payload) : this.#apply(payload);
  }

  #say(me) {
    this.#me = me;
    if (!this.#joined) return; // The join, or the answer to it, takes care of it.
    const call = me.observe ? { event: "untrack" } : { event: "track", payload: me.meta };
    this.#send(this.#joinRef, "presence", { type: "presence", ...call });
  }

  /** A snapshot replaces the roster. After a reconnect, only what is different counts as a change. */
  #replace(state) {
    const changes = [];
    const users = new Set([...this.roster.keys(), ...Object.keys(state)]);
    for (const user of users) this.#set(user, state[user]?.metas ?? [], changes);
    this.onchange(changes, true);
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.forEach((diff) => this.#apply(diff));
  }

  /** All joins, then all leaves: an update is a join of the new ref and a leave of the old one. */
  #apply({ joins, leaves }) {
    const changes = [];
    for (const user of new Set([...Object.keys(joins), ...Object.keys(leaves)])) {
      const joined = joins[user]?.metas ?? [];
      const [isNew, isGone] = [refs(joined), refs(leaves[user]?.metas ?? [])];
      const kept = (this.roster.get(user) ?? []).filter((meta) => !isNew.has(meta.phx_ref));
      this.#set(user, [...kept, ...joined].filter((meta) => !isGone.has(meta.phx_ref)), changes);
    }
    this.onchange(changes, false);
  }

  #set(user, metas, changes) {
    const before = this.roster.get(user) ?? [];
    const type = difference(before, metas);
    if (!type) return;
    if (metas.length) this.roster.set(user, metas);
    else this.roster.delete(user);
    changes.push({ type, user, metas, before });
  }
}

const refs = (metas) => new Set(metas.map((meta) => meta.phx_ref));

/** Many tabs of one user are one member: only the first connection is a "join", the last a "leave". */
function difference(before, after) {
  if (before.length === 0) return after.length ? "join" : null;
  if (after.length === 0) return "leave";
  if (after.length !== before.length) return after.length > before.length ? "more" : "fewer";
  const known = refs(before);
  return after.every((meta) => known.has(meta.phx_ref)) ? null : "update";
}
