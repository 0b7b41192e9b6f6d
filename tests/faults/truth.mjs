// The truth that the observers' stories are compared with: who was really connected, from when to
// when, on which node, and how it ended; and when which nodes were disturbed by the fault under test.
//
// A seat is one connection's place in one channel. Its meta carries a tag that no other seat has, so
// whatever is shown anywhere can be traced to it. A seat whose socket ends and comes back has several
// spans. All times are milliseconds of one monotonic clock.

export const now = () => performance.now()

export class Truth {
  /** By channel and tag. */
  seats = new Map()
  /** While one is open, and for the time to converge after it, some nodes may not know of others. */
  windows = []
  /** When a node that lives may look dead to the others. */
  excuses = []
  /** How long nodes may take to hear of each other's news when nothing is disturbed. */
  hearing = 300

  /** `lateness` says how much later than the server this process may have noticed what was noticed at a time. */
  constructor({ grace, converge, killed, lease, lateness = () => 0 }) {
    Object.assign(this, { grace, converge, killed, lease, lateness })
  }

  /** `keyed`: it is known by a resume key. */
  seat(channel, user, tag, keyed = false) {
    const seat = { channel, user, tag, keyed, spans: [], updates: 0 }
    this.seats.set(`${channel}|${tag}`, seat)
    return seat
  }

  /** The seat's socket is about to join on `node`. */
  begin(seat, node) {
    const span = { node, begun: now(), acked: null, ended: null }
    seat.spans.push(span)
    return span
  }

  /**
   * `how` is "leave" (said so), "drop" (the socket ended), "closed" (the server ended it), "silent" (nothing comes
   * any more, and nothing was closed) or "kill" (its node died).
   */
  end(span, how) {
    if (span && !span.ended) span.ended = { at: now(), how }
  }

  /** Everyone on `node` is gone with it. */
  died(node) {
    for (const seat of this.seats.values()) for (const span of seat.spans) if (span.node === node) this.end(span, "kill")
  }

  /** From now on, and until the returned function is called, news between `nodes` and all others are delayed. */
  disturb(nodes = null, { self = false, from = now() } = {}) {
    const window = { from, to: null, nodes: nodes && new Set(nodes), self }
    this.windows.push(window)
    return () => (window.to ??= now())
  }

  /** From now on, and until the returned function is called, `owner` may look dead to the others. */
  excuse(owner, from = now()) {
    const excuse = { owner, from, to: null }
    this.excuses.push(excuse)
    return () => (excuse.to ??= now())
  }

  isExcused(owner, observer, at) {
    return this.excuses.some(
      (one) => one.owner === owner && observer !== owner && at >= one.from && at <= (one.to ?? Infinity) + this.converge,
    )
  }

  /** The time by which `observer` must know what happened on `owner` at `at`, and whether a fault lies between. */
  due(at, bound, owner, observer, how) {
    let due = at + bound
    let disturbed = false
    // A node that died with something left to say cannot have said it.
    if (owner.killedAt && owner.killedAt <= due && at <= owner.killedAt) {
      disturbed = how !== "kill"
      due = Math.max(due, owner.killedAt + this.killed)
    }
    for (const { from, to, nodes, self } of this.windows) {
      const concerned = (owner !== observer || self) && (!nodes || nodes.has(owner) || nodes.has(observer))
      const over = (to ?? Infinity) + this.converge + (how === "kill" ? this.killed : 0)
      if (concerned && from <= due && over >= at) {
        disturbed = true
        due = Math.max(due, over)
      }
    }
    return { due, disturbed }
  }

  /** How long after its end a span may be seen. */
  bound(how) {
    return { leave: 1000, drop: this.grace + 1000, closed: this.grace + 1000, silent: 60_000 + this.grace + 1500, kill: this.killed }[how]
  }

  /** Whether the span after `spans[at]` came so early that nobody may have seen the seat leave. */
  cameBack(spans, at) {
    const { ended, node } = spans[at]
    const next = spans[at + 1]
    if (!next?.acked) return false
    const kept = ended.how === "kill" ? (this.lease * 2) / 3 : this.grace
    // While they cannot hear of each other, one node cannot know that somebody came back to another.
    if (next.node !== node && this.due(ended.at, kept, node, next.node).disturbed && ended.how !== "kill") return false
    return next.acked + this.hearing + this.lateness(ended.at) <= ended.at + kept
  }

  /** Who is in `channel` now: seats, each with its open span. */
  present(channel) {
    const present = []
    for (const seat of this.seats.values()) {
      const span = seat.spans.at(-1)
      if (seat.channel === channel && span && !span.ended) present.push({ seat, span })
    }
    return present
  }

  /** Whether somebody is between joining and having joined. */
  isMoving() {
    return [...this.seats.values()].some(({ spans }) => spans.some((span) => !span.acked && !span.ended))
  }
}
