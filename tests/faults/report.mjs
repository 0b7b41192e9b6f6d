// Fills the table of docs/guarantees.md with what the fault tests have measured:
//
//     ROLLCALL_FAULT_REPORT=$PWD/report.jsonl node --test --test-concurrency=1 tests/faults/*.test.mjs
//     node tests/faults/report.mjs report.jsonl
//
// Each line of the report is the worst of one test in one run. Lines of runs that failed count too.

import { readFileSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"

const DOCUMENT = fileURLToPath(new URL("../../docs/guarantees.md", import.meta.url))
const [BEGIN, END] = ["<!-- figures: written by tests/faults/report.mjs -->", "<!-- end of figures -->"]

const seconds = (ms) => (ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(ms < 20_000 ? 2 : 1)} s`)
const all = "all of `tests/faults`"
const folder = "`node --test --test-concurrency=1 tests/faults/*.test.mjs`"
const file = (name, pattern) => `\`node --test${pattern ? ` --test-name-pattern='${pattern}'` : ""} tests/faults/${name}.test.mjs\``

/** Guarantee, what is promised, the measured name (and its limit where there are several), test, command. */
const ROWS = [
  ["G1", "a join is seen on the same node", { name: "G1 a join is seen on the same node" }, all, folder],
  ["G1", "a join is seen on another node", { name: "G1 a join is seen on another node" }, all, folder],
  ["G2, G5, G7", "no join or leave is told that is not true: none false, doubled, lost or too early", { name: "G2 G5 joins and leaves told that do not fit the truth" }, all, folder],
  ["G3", "every observer agrees with the truth after a fault", { name: "G3 convergence: every view" }, "all faults that heal: `redis`, `partition`, `crash`, `clock`", folder],
  ["G3", "REST on every node and Redis agree too", { name: "G3 convergence: REST and Redis too" }, "the same", folder],
  ["G4", "an explicit leave", { name: "G4 an explicit leave" }, all, folder],
  ["G4", "a closed socket, with a grace of 1 s", { name: "G4 a closed socket, grace included", limit: 2000 }, all, folder],
  ["G4", "a closed socket, with the default grace of 2 s", { name: "G4 a closed socket, grace included", limit: 3000 }, "`crash`: kill -9 with the default times", file("crash", "default times")],
  ["G4", "a silent socket, with a silence of 10 s and the grace of 1 s", { name: "G4 a silent socket" }, "`crash`: a client whose cable is pulled", file("crash", "cable")],
  ["G4", "a killed node's members, with the default lease of 10 s", { name: "G4 a killed node's members", limit: 15_000 }, "`crash`: kill -9 with the default times", file("crash", "default times")],
  ["G4", "a killed node's members, with a lease of 3 s", { name: "G4 a killed node's members", limit: 8000 }, "`crash`: kill -9 under churn; two of three; `deploy`: a second SIGTERM", file("crash", "kill")],
  ["G4", "a stopped node's members (SIGSTOP), with a lease of 3 s", { name: "G4 a stopped node's members, to the others" }, "`crash`: SIGSTOP for longer than the lease", file("crash", "SIGSTOP")],
  ["G4", "the members of a node that lost Redis alone, to the others, with a lease of 3 s", { name: "G4 the members of a node cut off from Redis, to the others" }, "`partition`: black hole, hard cut, asymmetric", file("partition")],
  ["G4", "a draining node's members who do not come back, grace of 1 s", { name: "G4 a socket closed by a draining node, grace included" }, "`deploy`", file("deploy")],
  ["G5", "no socket is closed by an outage", { name: "G5 sockets closed that nobody asked to close, and clients' own faults" }, all, folder],
  ["G5", "an outage of Redis is said by /readyz, /metrics and the log", { name: "an outage of Redis is said by every /readyz" }, "`redis`: unreachable, killed, paused", file("redis")],
  ["drain", "a node under load ends", { name: "a node drains and ends" }, "`deploy`", file("deploy")],
  ["drain", "its sockets are told to go, 300 of them, over", { name: "sockets are told to go over this time" }, "`deploy`: SIGTERM under load", file("deploy", "under load")],
  ["drain", "a node without Redis ends", { name: "a node without Redis drains and ends" }, "`deploy`: SIGTERM while Redis is away", file("deploy", "away")],
  ["drain", "a second SIGTERM ends it", { name: "a second SIGTERM ends the node" }, "`deploy`: a second SIGTERM", file("deploy", "second")],
  ["", "how late the test process itself was (is allowed for)", { name: "how late timers of the test process itself were" }, all, folder],
]

function table(lines) {
  const rows = ROWS.map(([guarantee, promise, { name, limit }, test, command]) => {
    const found = lines.filter((line) => line.guarantee === name && (limit === undefined || line.limit === limit))
    const bound = found[0]?.limit ?? limit
    const show = (value) => (found[0]?.unit === "ms" ? seconds(value) : String(value))
    const worst = found.length === 0 ? "not measured" : show(Math.max(...found.map(({ value }) => value)))
    const samples = found.reduce((sum, line) => sum + line.samples, 0)
    return `| ${guarantee} | ${promise} | ${bound === null || bound === undefined ? "" : show(bound)} | ${worst} | ${samples.toLocaleString("en")} | ${test} | ${command} |`
  })
  return ["| | promise | bound | worst seen | times | test | again |", "| --- | --- | --- | --- | --- | --- | --- |", ...rows].join("\n")
}

const lines = process.argv.slice(2).flatMap((name) => readFileSync(name, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line)))
if (lines.length === 0) throw new Error("usage: node report.mjs REPORT.jsonl …")
const document = readFileSync(DOCUMENT, "utf8")
const [begin, end] = [document.indexOf(BEGIN), document.indexOf(END)]
if (begin < 0 || end < begin) throw new Error(`no place for figures in ${DOCUMENT}`)
const tests = new Map(lines.map(({ seed, test, passed }) => [`${test}, seed ${seed}`, passed]))
const failed = [...tests].filter(([, passed]) => !passed)
const summary = `${tests.size} runs of single tests, of which ${failed.length} failed${failed.length > 0 ? " for another reason than a figure here, or for one that stands below" : ""}.`
writeFileSync(DOCUMENT, `${document.slice(0, begin)}${BEGIN}\n${summary}\n\n${table(lines)}\n${document.slice(end)}`)
