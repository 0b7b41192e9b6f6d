// The auditor: compares each view with the truth, word by word.
//
//  - nobody was said to leave, or to join, who did not (G2, G5, G7); connections of one user that nothing tells
//    apart, and that may have taken each other's seats, are judged as that user;
//  - nobody was shown longer after their end than its bound (G4);
//  - nobody was missing longer after their join than it takes (G1, G3);
//  - no socket was closed that nobody asked to close (G5).
// What a fault excuses is said by the test, in the truth's windows and excuses, and nothing else is excused.

import { now } from "./truth.mjs"

/** How long a join may take to be seen everywhere. The first of a channel is at once, under churn they share diffs. */
const VISIBLE = 1000
/** A server that closes a socket knows of it before the client does. */
const EARLY = { drop: 50, closed: 300, silent: 0 }
/** By then a node has heard that a socket on this machine has ended. */
const HEARD = 150
/** So much before a socket's end is noticed here may its seat have been taken. */
const UNNOTICED = 300

export class Audit {
  faults = []
  measured = []

  constructor(world) {
    Object.assign(this, { world, truth: world.truth })
  }

  run() {
    let words = 0
    for (const view of this.world.views()) {
      this.faults.push(...view.faults)
      for (const epoch of view.epochs) {
        this.#epoch(view, epoch)
        for (const { refTimes } of epoch.tags.values()) words += refTimes.length
      }
    }
    const closed = this.faults.length
    for (const visitor of [...this.world.visitors, ...this.world.observers]) {
      if (visitor.me) this.faults.push(...visitor.me.ledger.faults)
      for (const { code, node } of visitor.closes) {
        if (!node.killedAt && !node.draining) this.faults.push(`${visitor.id}: ${node.name} closed its socket with ${code}`)
      }
    }
    this.measured.push({ guarantee: "G2 G5 joins and leaves told that do not fit the truth", value: closed, limit: 0, unit: "", samples: words })
    this.measured.push({ guarantee: "G5 sockets closed that nobody asked to close, and clients' own faults", value: this.faults.length - closed, limit: 0, unit: "", samples: this.world.visitors.length + this.world.observers.length })
    return this.faults
  }

  #epoch(view, epoch) {
    const observer = epoch.node
    for (const [tag, story] of epoch.tags) {
      const seat = this.truth.seats.get(`${view.channel}|${tag}`)
      if (!seat || seat.user !== story.user) {
        this.#fault(view, `shows ${tag} of ${story.user}, whom nobody is`)
        continue
      }
      this.#leaves(view, epoch, seat, story)
      this.#joins(view, epoch, seat, story)
      this.#ghosts(view, epoch, seat, story)
    }
    for (const seat of this.truth.seats.values()) {
      if (seat.channel === view.channel) this.#lost(view, epoch, seat, observer)
    }
  }

  #leaves(view, epoch, seat, { times, refTimes }) {
    if (this.#company(seat).size > 1) return this.#userLeaves(view, epoch, seat, times)
    for (const { out } of times) {
      const why = out === null ? null : this.#falseLeave(seat, out, epoch.node)
      if (why && !this.#excused(seat, epoch.node, out)) this.#fault(view, `${at(out)} false leave of ${seat.tag}, who ${why} (${spans(seat)})${this.#others(seat, out)}`)
    }
    // Refs too: a leave and a join of the same connection in one diff would else go unseen.
    for (const { at: when, what } of refTimes) {
      if (what === "in" || (what === "replaced" && seat.updates > 0) || this.#excused(seat, epoch.node, when)) continue
      const last = seat.spans.findLastIndex((span) => span.ended && span.ended.at <= when)
      if (last < 0) this.#fault(view, `${at(when)} a connection of ${seat.tag} was ${what}, who stayed${this.#others(seat, when)}`)
      else if (this.#isSeamless(seat, last) && !this.#knowsOnlyPartOf(seat.spans, when, epoch.node)) this.#fault(view, `${at(when)} a connection of ${seat.tag} was ${what}, who came back in time (${spans(seat)})${this.#others(seat, when)}`)
    }
  }

  /** The user must not be seen to go with one connection while another one is there, of which it was known here. */
  #userLeaves(view, epoch, { user, channel, tag }, times) {
    const isShown = (when) => [...epoch.tags.values()].some((story) => story.user === user && story.times.some((time) => time.in <= when && (time.out ?? Infinity) > when))
    for (const { out } of times) {
      if (out === null || isShown(out)) continue
      const stays = ({ node, acked, ended }) => acked !== null && (ended?.at ?? Infinity) > out && this.truth.due(acked, this.truth.hearing + this.truth.lateness(acked), node, epoch.node).due < out
      const staying = this.#seatsOf(channel, user).find((seat) => seat.spans.some(stays) && !this.#excused(seat, epoch.node, out))
      if (staying) this.#fault(view, `${at(out)} false leave of ${user} with ${tag}, while ${staying.tag} was there (${spans(staying)})${this.#others(staying, out)}`)
    }
  }

  #seatsOf = (channel, user) => [...this.truth.seats.values()].filter((seat) => seat.channel === channel && seat.user === user)

  /**
   * The connections of the same user without a key that may have taken a seat from each other, this one included.
   * By nothing can be told which of them comes back: whoever comes first sits down where one waits, and two that come
   * to two nodes which have not heard of each other may both do so.
   */
  #company(seat) {
    const known = this.#companies.get(seat)
    if (known) return known
    const company = new Set([seat])
    const others = seat.keyed ? [] : this.#seatsOf(seat.channel, seat.user).filter((one) => !one.keyed)
    for (const one of company) for (const other of others) if (this.#mayTakeFrom(one, other) || this.#mayTakeFrom(other, one)) company.add(other)
    for (const one of company) this.#companies.set(one, company)
    return company
  }

  #companies = new Map()

  /** Whether one of `mine` began while one of `theirs` waited, as far as its node could know. */
  #mayTakeFrom(mine, theirs) {
    const waits = ({ node, ended }, { begun, node: to }) =>
      ended && ended.how !== "leave" && begun >= ended.at - UNNOTICED && begun <= this.truth.due(ended.at, this.truth.bound(ended.how), node, to, ended.how).due + this.truth.hearing + this.truth.lateness(ended.at)
    return mine !== theirs && theirs.spans.some((waiting) => mine.spans.some((span) => waits(waiting, span)))
  }

  /**
   * Whether nobody may have seen anything of the ends of all spans up to `last`: it came back in time. Without a
   * resume key it must come after the node has heard that the old socket has ended, or shows twice for a moment;
   * and of another node it cannot be known when that is. With one, the other node must have heard of the seat.
   */
  #isSeamless({ spans, keyed }, last) {
    const known = ({ node, ended }, next) => node === next.node && ended.how === "drop" && next.begun >= ended.at + HEARD + this.truth.lateness(next.begun)
    const heard = ({ node, acked }, next) => node === next.node || (acked !== null && next.begun >= acked + this.truth.hearing)
    return spans.slice(0, last + 1).every((span, i) => span.ended.how !== "leave" && this.truth.cameBack(spans, i) && (keyed ? heard(span, spans[i + 1]) : known(span, spans[i + 1])))
  }

  /** The other connections of the same user about then, for whoever reads a fault. */
  #others({ channel, user, tag }, about) {
    const near = ({ begun, ended }) => begun <= about && (ended?.at ?? Infinity) >= about - 3000
    const others = this.#seatsOf(channel, user).filter((seat) => seat.tag !== tag && seat.spans.some(near))
    return others.map((seat) => `; ${seat.tag} of the same user: ${spans(seat)}`).join("")
  }

  /** Why a leave that `observer` showed at `out` is false, or nothing. */
  #falseLeave({ spans }, out, observer) {
    const last = spans.findLastIndex((span) => span.ended && span.ended.at <= out)
    if (last < 0) return "was connected all the time"
    if (this.#knowsOnlyPartOf(spans, out, observer)) return null
    const { ended } = spans[last]
    if (ended.how === "leave" || ended.how === "kill") return this.truth.cameBack(spans, last) && ended.how === "kill" ? "had come back elsewhere" : null
    if (this.truth.cameBack(spans, last)) return "came back within the grace"
    // The end of the grace before, on a node that could not have heard yet of the return to another.
    const isTooEarly = ({ ended: before, node }, i) =>
      before && before.how !== "leave" && node !== spans[i + 1].node && !this.truth.cameBack(spans, i) && out >= this.#graceEnds(before) && out <= spans[i + 1].acked + this.truth.hearing + this.truth.lateness(before.at)
    if (spans.slice(0, last).some(isTooEarly)) return null
    return out < this.#graceEnds(ended) ? `had ${Math.round(ended.at + this.truth.grace - out)} ms of the grace left` : null
  }

  /** The earliest time at which a seat may be freed whose socket ended. */
  #graceEnds = ({ at, how }) => at + this.truth.grace - (EARLY[how] ?? 0) - this.truth.lateness(at)

  /** Whether a grace was over at `out` as far as `observer` can know: its return is on a node that it cannot hear. */
  #knowsOnlyPartOf(spans, out, observer) {
    return spans.some(({ ended }, i) => {
      if (!ended || (ended.how !== "kill" && out < this.#graceEnds(ended))) return false
      const after = spans.slice(i + 1).filter(({ begun }) => begun <= out)
      return after.length > 0 && after.every((span) => this.truth.due(span.begun, 0, span.node, observer).disturbed)
    })
  }

  #joins(view, epoch, seat, { times }) {
    for (const one of times) {
      const span = seat.spans.findLast(({ begun }) => begun <= one.in)
      if (!span) this.#fault(view, `${at(one.in)} join of ${seat.tag} before it joined`)
    }
    if (this.#company(seat).size > 1) return
    // Known, and to be mended: while an outage heals, the older seat of someone who moved and left may show again
    // for a moment. Not longer than a ghost may be shown.
    const moved = seat.spans.find(({ node }) => node !== seat.spans.at(-1).node)
    const mayFlash = (when) => moved && this.truth.due(when, 0, moved.node, epoch.node).disturbed
    const again = times.slice(1).filter((one) => !this.#excused(seat, epoch.node, one.in) && !mayFlash(one.in))
    // Without a key, who moves before the news of the old place have arrived has two, each with an end of its own.
    const from = seat.keyed ? (times[0]?.in ?? 0) : seat.spans[0].begun
    const returns = seat.spans.filter(({ begun }) => begun > from).length
    if (again.length > returns) this.#fault(view, `${at(again[0].in)} ${seat.tag} joined ${again.length} times more, and came back ${returns} times (${spans(seat)}; shown ${times.map((one) => `${at(one.in)}${one.out ? at(one.out) : ""}`).join("; ")})${this.#others(seat, again[0].in)}`)
  }

  #ghosts(view, epoch, seat, { times }) {
    // A seat that has moved may be shown until the end of what each of its spans is allowed.
    let due = 0
    let disturbed = false
    for (const [i, { ended, node }] of seat.spans.entries()) {
      if (!ended) continue
      const next = seat.spans[i + 1]?.begun ?? Infinity
      const own = this.truth.due(ended.at, this.truth.bound(ended.how), node, epoch.node, ended.how)
      disturbed ||= own.disturbed || due > own.due
      due = Math.max(due, own.due)
      for (const time of times) {
        const out = Math.min(time.out ?? epoch.ended ?? now(), next)
        if (time.in >= next || out <= ended.at) continue
        const lag = this.world.lag.between(ended.at, out)
        if (out > due + lag) this.#fault(view, `${at(out)} ghost: ${seat.tag} was shown ${Math.round(out - ended.at)} ms after its end (${ended.how} on ${node.name}), ${Math.round(out - due)} too long${time.in > ended.at ? ", joined after it" : ""} (${spans(seat)})`)
        if (!disturbed && next === Infinity && time.out !== null && time.in <= ended.at) this.#measure(LEAVES[ended.how], out - ended.at, due - ended.at, `${seat.tag} to ${view.name}`)
      }
    }
  }

  #lost(view, epoch, seat, observer) {
    for (const { node, begun, acked, ended } of seat.spans) {
      if (acked === null) continue
      const from = Math.max(acked, epoch.begun)
      const until = Math.min(ended?.at ?? Infinity, epoch.ended ?? Infinity)
      // Of two who took the same seat one is shown when their nodes have heard of each other.
      const nodes = new Set([node, ...[...this.#company(seat)].flatMap((one) => one.spans.map((span) => span.node))])
      const dues = [...nodes].map((one) => this.truth.due(acked, VISIBLE, one, observer))
      const due = Math.max(...dues.map((one) => one.due))
      const disturbed = dues.some((one) => one.disturbed)
      const times = epoch.tags.get(seat.tag)?.times ?? []
      const time = times.find((one) => one.in <= Math.max(until, from) && (one.out ?? Infinity) >= from)
      const seen = time ? time.in : Infinity
      const lag = this.world.lag.between(begun, Math.min(seen, due))
      if (until <= epoch.begun || until < due + lag) continue
      const late = Math.max(due, epoch.begun) + lag
      if (seen > late && !this.#excused(seat, observer, Math.min(seen, now()))) {
        this.#fault(view, `${seat.tag} joined on ${node.name} at ${at(acked)} and was ${time ? `seen ${Math.round(seen - late)} ms too late` : "never seen"}`)
      }
      if (time && !disturbed && time.in >= begun && begun >= epoch.begun) this.#measure(node === observer ? "G1 a join is seen on the same node" : "G1 a join is seen on another node", time.in - begun, VISIBLE, `${seat.tag} at ${at(begun)} to ${view.name} in ${view.channel}, acked ${acked - begun}, epoch ${at(epoch.begun)}`)
    }
  }

  #excused(seat, observer, when) {
    return seat.spans.some(({ node }) => this.truth.isExcused(node, observer, when))
  }

  #measure(guarantee, value, limit, detail) {
    this.measured.push({ guarantee, value, limit: Math.round(limit), unit: "ms", detail })
  }

  #fault(view, what) {
    this.faults.push(`${view.name} in ${view.channel}: ${what}`)
  }
}

const LEAVES = {
  leave: "G4 an explicit leave",
  drop: "G4 a closed socket, grace included",
  closed: "G4 a socket closed by a draining node, grace included",
  silent: "G4 a silent socket",
  kill: "G4 a killed node's members",
}

export const spans = (seat) => (seat.keyed ? "with a key; " : "") + seat.spans.map(({ node, begun, acked, ended }) => `${node.name}: ${at(begun)}${acked ? at(acked) : ""}${ended ? `${ended.how} ${at(ended.at)}` : ""}`).join("; ")

const at = (time) => `${(time / 1000).toFixed(3)} s:`
