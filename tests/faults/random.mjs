// Chance that can be had again: everything random in a test comes from one seed, which is printed.

/** The seed of this run: `ROLLCALL_FAULT_SEED`, or a new one. */
export const SEED = Number(process.env.ROLLCALL_FAULT_SEED ?? Math.floor(Math.random() * 2 ** 32)) >>> 0

/** A source of numbers in [0, 1) that is the same for the same seed and name. */
export function random(seed, name = "") {
  let state = seed
  for (const letter of name) state = Math.imul(state ^ letter.codePointAt(0), 0x9e3779b1) >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    next,
    /** A whole number from `from` to `to`, both included. */
    whole: (from, to) => from + Math.floor(next() * (to - from + 1)),
    pick: (list) => list[Math.floor(next() * list.length)],
  }
}
