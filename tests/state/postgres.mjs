// A real PostgreSQL of the test's own, on a free port, with nothing in it.

import { spawnSync } from "node:child_process"
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { freePort, launch, until } from "../phoenix/server.mjs"

/** Where the programs of PostgreSQL are: Debian keeps them off the path, by version. */
function programs() {
  const root = "/usr/lib/postgresql"
  const versions = existsSync(root) ? readdirSync(root).sort((a, b) => Number(b) - Number(a)) : []
  const folder = versions.map((version) => path.join(root, version, "bin")).find((bin) => existsSync(path.join(bin, "initdb")))
  return (name) => (folder ? path.join(folder, name) : name)
}

/** It refuses to run as root: then it runs as its own user. */
const asItself = process.getuid?.() === 0 ? ["runuser", "-u", "postgres", "--"] : []

/** Starts a server. `stop` ends it for good, `restart` brings it back with what it had. */
export async function startPostgres() {
  const program = programs()
  const folder = mkdtempSync(path.join(tmpdir(), "rollcall-postgres-"))
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
  if (asItself.length > 0) run(["chown", "postgres", folder])
  run([...asItself, program("initdb"), "-D", folder, "-U", "rollcall", "--auth=trust", "--no-sync", "-E", "UTF8"])
  const port = await freePort()
  const url = `postgres://rollcall@127.0.0.1:${port}/postgres`
  const args = ["-D", folder, "-p", String(port), "-h", "127.0.0.1", "-k", folder, "-F"]
  let server
  const start = async () => {
    const [command, ...rest] = [...asItself, program("postgres"), ...args]
    server = launch(command, rest, { PATH: process.env.PATH, LC_ALL: "C" })
    const accepts = () => spawnSync(program("pg_isready"), ["-q", "-h", "127.0.0.1", "-p", String(port)]).status === 0
    await until(accepts, "PostgreSQL answers", 20_000, server.log)
  }
  await start()
  return {
    url,
    /** What a statement gives, as text. */
    query: (statement) => run(["psql", "-X", "-A", "-t", "-d", url, "-c", statement]).trim(),
    // SIGINT: it ends its connections and itself.
    stop: () => end(server, "SIGINT"),
    restart: start,
  }
}

/** `runuser` hands no signals on: the server it started is told itself. */
async function end(server, signal) {
  const { pid } = server.child
  const children = () => readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean).map(Number)
  for (const one of asItself.length > 0 ? children() : [pid]) process.kill(one, signal)
  let ended = false
  server.exited.then(() => (ended = true))
  await until(() => ended, "PostgreSQL has ended", 20_000, server.log)
}

function run([command, ...args]) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: "utf8" })
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${error ?? stderr}`)
  return stdout
}
