// One member of a channel over Phoenix Channels: connects, joins, keeps its view, leaves.
//
// Uses k6/ws: k6/websockets is not yet in k6 1.1, and the experimental module is on its way out.

import { check, sleep } from "k6"
import { Counter, Rate, Trend } from "k6/metrics"
import ws from "k6/ws"

import { View } from "./view.js"

/** Of all joins: answered ok and followed by a state. */
export const joinOk = new Rate("join_ok")
/** From writing the join to having the state. */
export const joinToState = new Trend("join_to_state", true)
/** From another's writing its join to having it in the view. One process, so one clock. */
export const joinToVisible = new Trend("join_to_visible", true)
/** Frames that do not fit a view or the protocol. */
export const viewFaults = new Counter("view_faults")

const JOIN = "1"
const LEAVE = "2"

class Member {
  constructor(socket, { channel, run, user, measures }) {
    Object.assign(this, { socket, channel, run, user, measures: measures === true })
    this.view = new View()
    this.accepted = false
    this.leaving = false
    this.left = false
  }

  join() {
    this.sent = Date.now()
    const meta = { name: this.user, run: this.run, sent: this.sent }
    this.#send([JOIN, JOIN, this.channel, "phx_join", { user_id: this.user, meta }])
  }

  leave() {
    this.leaving = true
    this.#send([JOIN, LEAVE, this.channel, "phx_leave", {}])
  }

  hear(text) {
    try {
      this.#frame(JSON.parse(text), text)
    } catch (e) {
      this.wrong(`not a frame (${e})`, text)
    }
  }

  wrong(what, text) {
    viewFaults.add(1)
    console.error(`${this.user}: ${what}: ${String(text).slice(0, 120)}`)
  }

  #frame([, ref, topic, event, payload], text) {
    if (topic !== this.channel) return this.wrong("of another topic", text)
    if (event === "phx_reply") this.#reply(ref, payload, text)
    else if (event === "presence_state") this.#state(payload)
    else if (event === "presence_diff") this.#diff(payload)
    else if (event === "phx_error" || (event === "phx_close" && !this.leaving)) this.wrong("put out", text)
  }

  #send(frame) {
    this.socket.send(JSON.stringify(frame))
  }

  #reply(ref, payload, text) {
    if (payload.status !== "ok") this.wrong("refused", text)
    else if (ref === JOIN) this.accepted = true
    else if (ref === LEAVE) {
      this.left = true
      this.socket.close()
    }
  }

  #state(roster) {
    if (!this.view.loaded) joinToState.add(Date.now() - this.sent)
    this.view.state(roster)
  }

  #diff(diff) {
    if (!this.view.diff(diff) || !this.measures) return
    const now = Date.now()
    for (const [user, { metas }] of Object.entries(diff.joins)) {
      if (user === this.user) continue
      // Whoever belongs to another run may go by another clock.
      for (const { run, sent } of metas) if (run === this.run) joinToVisible.add(now - sent)
    }
  }
}

/**
 * Joins, stays for `seconds`, looks at the view, stays `linger` seconds more and leaves. Members who all
 * look at the same time need the linger: else the first to leave is missing in the views of the last.
 * `measures` makes a member watch how fast others become visible.
 */
export function visit({ url, channel, run, user, seconds, linger = 0, measures, look }) {
  let member
  const response = connect(url, (socket) => {
    member = new Member(socket, { channel, run, user, measures })
    socket.on("open", () => member.join())
    socket.on("message", (text) => member.hear(text))
    socket.on("error", (e) => member.wrong("socket", e.error()))
    socket.setTimeout(() => {
      check(member.view, { "sees itself": (view) => view.has(user) })
      if (look) look(member.view)
    }, milliseconds(seconds))
    socket.setTimeout(() => member.leave(), milliseconds(seconds + linger) + 1)
    // The reply to the leave closes the socket; where none comes, this does.
    socket.setTimeout(() => socket.close(), milliseconds(seconds + linger + 5))
  })
  check(response, { connected: (r) => r !== null && r.status === 101 })
  joinOk.add(member !== undefined && member.accepted && member.view.loaded)
  if (member === undefined) return
  check(member, { "leave is answered": (m) => m.left })
  if (member.view.faults > 0) {
    viewFaults.add(member.view.faults)
    console.error(`${user}: ${member.view.faults} joins or leaves that did not fit its view`)
  }
}

/** Without a server `ws.connect` throws, and what was not counted would pass every threshold. */
function connect(url, use) {
  try {
    return ws.connect(url, {}, use)
  } catch (e) {
    console.error(`${url}: ${e}`)
    sleep(1)
    return null
  }
}

// A timer of k6 must be longer than nothing.
const milliseconds = (seconds) => Math.max(1, Math.round(seconds * 1000))
