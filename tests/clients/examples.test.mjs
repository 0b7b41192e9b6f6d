// The ten lines for each client, run as they are served to readers: all of them in one room.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { mkdtemp, rm, symlink, writeFile } from "node:fs/promises"
import os from "node:os"
import path from "node:path"
import { after, before, test } from "node:test"
import { fileURLToPath } from "node:url"
import { startNode, until } from "../phoenix/server.mjs"

const here = path.dirname(fileURLToPath(import.meta.url))
const PEOPLE = { supabase: "Ada", phoenix: "Grace", pusher: "Alan", echo: "Edsger" }
let node, folder
const running = new Set()

before(async () => {
  node = await startNode()
  folder = await mkdtemp(path.join(os.tmpdir(), "rollcall-examples-"))
  // Where an application has its packages.
  await symlink(path.join(here, "node_modules"), path.join(folder, "node_modules"))
  await writeFile(path.join(folder, "package.json"), '{"type":"module"}')
  await writeFile(path.join(folder, ".curlrc"), `connect-to = "localhost:8000:127.0.0.1:${node.port}"\n`)
})
after(async () => {
  await Promise.all([...running].map((one) => one.stop()))
  await node?.stop()
  await rm(folder, { recursive: true, force: true })
})

/** Fetches an example from the server, and runs it: `said` gathers what it prints. */
async function run(file) {
  const { text } = await node.get(`/examples/${file}`)
  assert(text.length > 100, `the server has ${file}`)
  await writeFile(path.join(folder, file), text)
  const env = { ...process.env, ROLLCALL_TEST_PORT: String(node.port), CURL_HOME: folder }
  const command = file.endsWith(".sh") ? ["sh", "-e", file] : [process.execPath, "--import", path.join(here, "local.mjs"), file]
  const child = spawn(command[0], command.slice(1), { cwd: folder, env, stdio: ["ignore", "pipe", "pipe"] })
  const one = { file, said: "", code: null }
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (one.said += data))
  const ended = new Promise((resolve) => child.on("exit", (code) => resolve((one.code = code ?? "killed"))))
  one.ended = ended
  one.stop = () => (child.kill(), ended)
  running.add(one)
  return one
}

const last = (one) => one.said.trimEnd().split("\n").filter((line) => line.startsWith("here:")).at(-1) ?? ""

test("each library's ten lines see all the others, and hear them wave", async () => {
  const everybody = []
  for (const [kind, name] of Object.entries(PEOPLE)) {
    const one = await run(`${kind}.js`)
    await until(() => /here:.*(ada|grace|alan|Edsger)/.test(one.said), `${kind} is in`, 10_000, () => one.said)
    everybody.push(Object.assign(one, { kind, name }))
  }
  for (const one of everybody.slice(0, 3)) {
    for (const user of ["ada", "grace", "alan", "edsger"]) {
      await until(() => last(one).includes(`'${user}'`), `${one.kind} sees ${user}`, 5000, () => one.said)
    }
  }
  for (const name of Object.values(PEOPLE)) assert.match(everybody[3].said, new RegExp(`here:.*'${name}'`), "Echo shows names")
  // Who came later waved on coming in.
  for (const [at, one] of everybody.entries()) {
    for (const later of everybody.slice(at + 1)) {
      await until(() => one.said.includes(`${later.name} waves`), `${one.kind} hears ${later.kind}`, 5000, () => one.said)
    }
    assert(!one.said.includes(`${one.name} waves`), `${one.kind} does not hear itself`)
  }

  const rest = await run("rest.js")
  await rest.ended
  assert.equal(rest.code, 0, rest.said)
  assert.match(rest.said, /^4 here\n/)
  for (const name of Object.values(PEOPLE)) assert.match(rest.said, new RegExp(`shows { name: '${name}' }`))
  const curl = await run("curl.sh")
  await curl.ended
  assert.equal(curl.code, 0, curl.said)
  assert.match(curl.said, /"online":4/)
  for (const one of everybody) await until(() => one.said.includes("The backend waves"), `${one.kind} hears the backend`, 5000, () => one.said)

  await everybody[0].stop()
  await until(() => everybody[3].said.includes("Ada left"), "Echo sees Ada leave", 10_000, () => everybody[3].said)
})

test("the page of the examples names every one, and nothing it does not have", async () => {
  const { text } = await node.get("/examples/")
  const files = [...text.matchAll(/data-file="([^"]+)"/g)].map((match) => match[1])
  assert.deepEqual(files.sort(), ["curl.sh", "echo.js", "phoenix.js", "pusher.js", "rest.js", "supabase.js"])
  for (const file of files) assert.equal((await node.get(`/examples/${file}`)).status, 200)
})
