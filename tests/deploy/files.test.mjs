// What the files of deploy/ say about each other and about the server.

import assert from "node:assert/strict"
import { execFile, spawnSync } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import { test } from "node:test"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { BIN } from "../phoenix/server.mjs"

const run = promisify(execFile)
const read = (name) => readFileSync(fileURLToPath(new URL(`../../deploy/${name}`, import.meta.url)), "utf8")
const names = (text, pattern) => new Set([...text.matchAll(pattern)].map((match) => match[1]))

test("every setting that is named is one of the server's", async () => {
  const { stdout: help } = await run(BIN, ["--help"])
  const known = names(help, /\b([A-Z][A-Z0-9]*_[A-Z0-9_]+)\b/g)
  const compose = read("compose.yaml")
  const node = compose.slice(compose.indexOf("x-node:"), compose.indexOf("x-redis:"))
  const named = [...names(node, /^ {4}([A-Z][A-Z0-9_]+):/gm), ...names(read("systemd/rollcall.env.example"), /^([A-Z][A-Z0-9_]+)=/gm)]
  assert.ok(named.length >= 10, `${named}`)
  assert.deepEqual(named.filter((name) => !known.has(name)), [])
})

test("HAProxy is given every address that it asks for, and every secret is in the example", () => {
  const compose = read("compose.yaml")
  const asked = names(read("haproxy/haproxy.cfg"), /\$\{([A-Z0-9_]+)\}/g)
  const given = names(compose, /^ {6}([A-Z][A-Z0-9_]+):/gm)
  assert.ok(asked.size >= 10)
  assert.deepEqual([...asked].filter((name) => !given.has(name)), [])
  const chosen = names(read("example.env"), /^([A-Z_]+)=/gm)
  assert.deepEqual([...names(compose, /(?<!\$)\$\{([A-Z_]+)(?::-[^}]*)?\}/g)].filter((name) => !chosen.has(name)), [])
})

test("systemd takes the unit", { skip: spawnSync("systemd-analyze", ["--version"]).error && "there is no systemd-analyze" }, async () => {
  const folder = mkdtempSync(path.join(os.tmpdir(), "rollcall-unit-"))
  try {
    const unit = path.join(folder, "rollcall.service")
    writeFileSync(unit, read("systemd/rollcall.service").replace("/usr/local/bin/rollcall\n", `${BIN}\n`))
    const { stderr } = await run("systemd-analyze", ["verify", unit])
    assert.equal(stderr, "")
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

test("every test that README names is there, by its file and its name", () => {
  const at = (name) => fileURLToPath(new URL(`../../${name}`, import.meta.url))
  const readme = readFileSync(at("README.md"), "utf8")
  const table = readme.slice(readme.indexOf("| owner's word"), readme.indexOf("## Settings"))
  const rows = table.split("\n").filter((line) => line.startsWith("| ")).slice(2)
  assert.ok(rows.length >= 15, `${rows.length} rows`)
  for (const row of rows) {
    const cell = row.split(" | ").at(-1)
    const named = [...cell.matchAll(/`((?:tests|deploy)\/[^`]+|[a-z_]+(?:::[a-z_]+)+|cargo run [^`]+)`(?: "([^"]+)")?/g)]
    assert.ok(named.length > 0 || cell.startsWith("the same"), row)
    for (const [, what, title] of named) {
      if (what.startsWith("cargo run")) continue
      if (what.includes("/")) {
        const text = readFileSync(at(what), "utf8")
        if (title) assert.ok(text.includes(title), `${what} has no test "${title}"`)
        continue
      }
      const [module] = what.split("::tests")
      const [file, folder] = [`src/${module.replaceAll("::", "/")}.rs`, `src/${module.replaceAll("::", "/")}/mod.rs`]
      const found = [file, folder].find((name) => existsSync(at(name)))
      assert.ok(found, `there is no module ${module}`)
      const test = what.split("::tests::")[1]
      assert.ok(readFileSync(at(found), "utf8").includes(test ? `fn ${test}(` : "mod tests"), `${found}: ${what}`)
    }
  }
})
