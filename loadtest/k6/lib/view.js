// The roster as one client builds it from a state and diffs: joins first, then leaves, by phx_ref.
// Counts what no client should ever be sent.

export class View {
  constructor() {
    this.users = new Map()
    this.loaded = false
    this.waiting = []
    this.faults = 0
  }

  state(roster) {
    this.users = new Map()
    for (const [user, { metas }] of Object.entries(roster)) this.#join(user, metas)
    this.loaded = true
    const waiting = this.waiting
    this.waiting = []
    for (const diff of waiting) this.diff(diff)
  }

  /** Applies a diff, or keeps it until the first state has come. Returns whether it was applied. */
  diff(diff) {
    if (!this.loaded) {
      this.waiting.push(diff)
      return false
    }
    for (const [user, { metas }] of Object.entries(diff.joins)) this.#join(user, metas)
    for (const [user, { metas }] of Object.entries(diff.leaves)) this.#leave(user, metas)
    return true
  }

  has(user) {
    return this.users.has(user)
  }

  #join(user, metas) {
    const refs = this.users.get(user) || new Set()
    for (const { phx_ref } of metas) {
      if (refs.has(phx_ref)) this.faults += 1
      refs.add(phx_ref)
    }
    this.users.set(user, refs)
  }

  #leave(user, metas) {
    const refs = this.users.get(user) || new Set()
    for (const { phx_ref } of metas) if (!refs.delete(phx_ref)) this.faults += 1
    if (refs.size === 0) this.users.delete(user)
  }
}
