// The auditor itself: it must find each kind of lie, and none in the truth. Without this, tests that always
// pass would look like good news.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { Audit } from "./audit.mjs"
import { Truth } from "./truth.mjs"
import { View } from "./view.mjs"

const GRACE = 1000
const node = (name) => ({ name, killedAt: null })
const shown = (tag, ref = tag, more = {}) => ({ metas: [{ tag, phx_ref: ref, ...more }] })

/** A truth and one view whose times are written by hand; what the auditor finds in it. */
const bench = (...steps) => {
  const truth = new Truth({ grace: GRACE, converge: 6000, killed: 8000, lease: 3000 })
  const [here, there] = [node("here"), node("there")]
  const view = new View("observer", here, "room")
  const clock = { now: 0 }
  const original = performance.now
  performance.now = () => clock.now
  try {
    const world = { truth, visitors: [], observers: [], lag: { between: () => 0 }, views: () => [view] }
    for (const [at, step] of steps) {
      clock.now = at
      step({ truth, view, here, there })
    }
    clock.now = 60_000
    view.end()
    return new Audit(world).run()
  } finally {
    performance.now = original
  }
}

const joins = (at, name) => [
  at,
  ({ truth, there }) => {
    const seat = truth.seats.get(`room|${name}`) ?? truth.seat("room", `user of ${name}`, name, name === "a")
    truth.begin(seat, there).acked = at + 1
  },
]
/** Comes back, to another node than before. */
const moves = (at, name) => [at, ({ truth, here }) => (truth.begin(truth.seats.get(`room|${name}`), here).acked = at + 1)]
/** Two connections of `ada` without keys: the second comes to another node while the first one's seat waits. */
const pair = (...steps) => [
  opens(0),
  ...["x", "y"].map((name, i) => [10 + 5100 * i, ({ truth, here, there }) => (truth.begin(truth.seat("room", "ada", name), i ? here : there).acked = 11 + 5100 * i)]),
  ends(5000, "x", "drop"),
  ...steps,
].sort(([one], [other]) => one - other)
const told = (at, joins, leaves = []) => {
  const of = (names) => (names.length > 0 ? { ada: { metas: names.map((tag) => ({ tag, phx_ref: tag })) } } : {})
  return [at, ({ view }) => view.diff({ joins: of(joins), leaves: of(leaves) })]
}
const ends = (at, name, how) => [at, ({ truth }) => truth.end(truth.seats.get(`room|${name}`).spans.at(-1), how)]
const opens = (at, ...names) => [at, ({ view }) => view.state(Object.fromEntries(names.map((name) => [`user of ${name}`, shown(name)])))]
const sees = (at, name, ref) => [at, ({ view }) => view.diff({ joins: { [`user of ${name}`]: shown(name, ref) }, leaves: {} })]
const misses = (at, name, ref) => [at, ({ view }) => view.diff({ joins: {}, leaves: { [`user of ${name}`]: shown(name, ref) } })]

describe("the auditor", () => {
  const right = (what, ...steps) => test(`finds nothing: ${what}`, () => assert.deepEqual(bench(...steps), []))
  const wrong = (what, pattern, ...steps) =>
    test(`finds ${what}`, () => {
      const faults = bench(...steps)
      assert.ok(faults.length > 0 && faults.every((fault) => pattern.test(fault)), JSON.stringify(faults))
    })

  right("a visit", opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "leave"), misses(5400, "a"))
  right("a socket that ended, after its grace", opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), misses(6100, "a"))
  right("a return within the grace", opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), joins(5200, "a"))
  right("a key's return to another node", opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), moves(5200, "a"))
  right("a return to another node that shows two for a moment", opens(0), joins(10, "b"), sees(50, "b"), ends(5000, "b", "drop"), moves(5200, "b"), sees(5210, "b", "b2"), misses(6100, "b"))
  right(
    "the end of a grace before the return to another node could be heard",
    opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), moves(5800, "a"), ends(5900, "a", "drop"), misses(6010, "a"),
  )
  right(
    "news late by an outage",
    opens(0), joins(10, "a"), sees(50, "a"), [4000, ({ truth }) => (truth.heal = truth.disturb())],
    ends(5000, "a", "leave"), joins(6000, "b"), [30_000, ({ truth }) => truth.heal()], misses(33_000, "a"), sees(33_000, "b"),
  )
  right("two without keys of whom one took the other's seat, and both are back", ...pair(told(50, ["x"]), told(5150, ["y"], ["x"]), moves(5300, "x"), told(5400, ["x"])))
  right("two without keys that swap seats, while the user stays", ...pair(told(50, ["x"]), told(5150, ["y"], ["x"]), moves(5300, "x"), told(5400, ["x"], ["y"]), told(5410, ["y"])))

  wrong("a user shown to leave of whom one of two without keys is there", /false leave of ada with x, while y was there/, ...pair(told(50, ["x"]), told(5150, ["y"], ["x"]), moves(5300, "x"), told(5400, ["x"], ["y"]), ends(5700, "x", "leave"), told(5800, [], ["x"]), told(6200, ["y"])))
  wrong("a false leave", /false leave of a, who was connected all the time|a connection of a was out/, opens(0), joins(10, "a"), sees(50, "a"), misses(5000, "a"))
  wrong("a leave and a join of someone who stayed", /false leave|joined 1 times more|was out/, opens(0), joins(10, "a"), sees(50, "a"), misses(5000, "a"), sees(5010, "a", "a2"))
  wrong("a false leave in an outage too", /false leave|was out/, opens(0), joins(10, "a"), sees(50, "a"), [4000, ({ truth }) => truth.disturb()], misses(5000, "a"))
  wrong("a leave before the grace is over", /600 ms of the grace left/, opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), misses(5400, "a"))
  wrong("a leave of someone who came back in time", /came back within the grace|came back in time/, opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), joins(5200, "a"), misses(6100, "a"))
  wrong(
    "the end of a grace after the return to another node was heard", /of the grace left|came back in time/,
    opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), moves(5200, "a"), ends(5300, "a", "drop"), misses(6010, "a"),
  )
  wrong("a key's return that shows two for a moment", /a connection of a was out, who came back in time/, opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"), moves(5200, "a"), sees(5210, "a", "a2"), misses(6100, "a"))
  wrong("a ghost", /ghost: a was shown 1500 ms after its end/, opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "leave"), misses(6500, "a"))
  wrong("a ghost that stays for ever", /ghost: a/, opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "drop"))
  wrong("a ghost that comes back", /ghost: a.*joined after it|joined 1 times more/, opens(0), joins(10, "a"), sees(50, "a"), ends(5000, "a", "leave"), misses(5100, "a"), sees(20_000, "a", "a2"), misses(20_010, "a", "a2"))
  wrong("a member lost", /a joined on there .* never seen/, opens(0), joins(10, "a"))
  wrong("a member missing in a snapshot", /a joined on there .* never seen/, joins(10, "a"), opens(5000))
  wrong("a join seen late", /500 ms too late/, opens(0), joins(10, "a"), sees(1511, "a"))
  wrong("a ref that joins twice", /ref a of a joined twice/, opens(0), joins(10, "a"), sees(50, "a"), sees(60, "a"))
  wrong("a leave of nobody", /left that was not there/, opens(0), misses(60, "a"))
  wrong("somebody who is nobody", /whom nobody is/, opens(0, "x"))
  wrong("a join before it", /before it joined/, opens(0), [5, ({ truth }) => truth.seat("room", "user of a", "a")], sees(6, "a"), joins(10, "a"))
})
