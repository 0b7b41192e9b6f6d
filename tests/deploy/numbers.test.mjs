// Every query of the dashboard and of the alert rules, put to a real Prometheus that asks two real nodes.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { closeAll, fresh, joinAs } from "../phoenix/client.mjs"
import { startRedis } from "../phoenix/redis.mjs"
import { freePort, launch, request, startNode, until } from "../phoenix/server.mjs"

const run = promisify(execFile)
const deploy = fileURLToPath(new URL("../../deploy/", import.meta.url))
const KEY = "numbers-service-key"

const dashboard = JSON.parse(readFileSync(path.join(deploy, "grafana/dashboard.json"), "utf8"))
const panels = dashboard.panels.filter(({ targets }) => targets)
const queries = panels.flatMap(({ title, targets }) => targets.map(({ expr }) => ({ title, expr })))

describe("the numbers", () => {
  let redis, nodes, prometheus, folder, port
  const ask = async (target) => {
    const { json } = await request(port, "GET", target)
    assert.equal(json?.status, "success", JSON.stringify(json))
    return json.data
  }
  const query = async (expr) => (await ask(`/api/v1/query?query=${encodeURIComponent(expr)}`)).result

  before(async () => {
    redis = await startRedis()
    const env = { REDIS_URL: redis.url, SERVICE_KEY: KEY }
    nodes = await Promise.all([startNode(env), startNode(env)])
    folder = mkdtempSync(path.join(os.tmpdir(), "rollcall-numbers-"))
    cpSync(path.join(deploy, "prometheus"), folder, { recursive: true })
    const config = readFileSync(path.join(folder, "prometheus.yml"), "utf8")
    writeFileSync(path.join(folder, "prometheus.yml"), config.replace("scrape_interval: 15s", "scrape_interval: 200ms").replace("evaluation_interval: 15s", "evaluation_interval: 200ms"))
    writeFileSync(path.join(folder, "targets.json"), JSON.stringify([{ targets: nodes.map((node) => `127.0.0.1:${node.port}`) }]))
    writeFileSync(path.join(folder, "haproxy.json"), "[]")
    writeFileSync(path.join(folder, "service.key"), KEY)
    port = await freePort()
    prometheus = launch("prometheus", [`--config.file=${path.join(folder, "prometheus.yml")}`, `--storage.tsdb.path=${path.join(folder, "data")}`, `--web.listen-address=127.0.0.1:${port}`, "--log.level=warn"], { PATH: process.env.PATH, HOME: folder })
    await until(async () => (await query('up{job="rollcall"} == 1')).length === 2, "both nodes are asked", 20_000, prometheus.log)
  })
  after(async () => {
    await closeAll()
    await prometheus?.stop()
    await Promise.all((nodes ?? []).map((node) => node.stop()))
    await redis?.stop()
    if (folder) rmSync(folder, { recursive: true, force: true })
  })

  test("every query of the dashboard finds something", async () => {
    // So that everything has happened that panels show a share of.
    const bearer = { Authorization: `Bearer ${KEY}` }
    const room = fresh()
    for (const node of nodes) {
      const me = await joinAs(node, room, `user of ${node.port}`)
      await me.track({ status: "busy" })
      const { json } = await node.post("/v1/sessions", { user_id: "ada" }, bearer)
      for (const asked of nodes) for (let i = 0; i < 2; i++) assert.equal((await asked.get("/auth/v1/user", { Authorization: `Bearer ${json.access_token}` })).status, 200)
      await node.get(`/v1/channels/${encodeURIComponent(room)}/presence/count`)
      me.channel.leave()
    }
    assert.ok(queries.length >= 40, `${queries.length} queries`)
    const missing = new Map()
    const filled = (expr) => expr.replaceAll("$__rate_interval", "1m").replaceAll("$job", "rollcall")
    await until(
      async () => {
        missing.clear()
        for (const { title, expr } of queries) {
          const result = await query(filled(expr))
          if (result.length === 0 || result.some(({ value }) => value[1] === "NaN")) missing.set(expr, title)
        }
        return missing.size === 0
      },
      "every query has an answer",
      15_000,
      () => [...missing],
    )
  })

  test("every metric that is asked for is there, and the job is found", async () => {
    const { text } = await nodes[0].get("/metrics")
    const there = new Set([...text.matchAll(/^(rollcall_\w+?)(?:\{.*\})? /gm)].map((match) => match[1]))
    const rules = readFileSync(path.join(deploy, "prometheus/alerts.yml"), "utf8").split("\n").filter((line) => /^\s+expr:/.test(line))
    assert.ok(rules.length >= 10)
    const asked = new Set([...queries.map(({ expr }) => expr), ...rules].flatMap((expr) => expr.match(/rollcall_\w+/g) ?? []))
    assert.deepEqual([...asked].filter((name) => !there.has(name)), [])
    const { length } = await query("group by (job) (rollcall_connections)")
    assert.equal(length, 1)
  })

  test("the rules hold, and one fires when it should", async () => {
    await run("promtool", ["check", "rules", path.join(folder, "alerts.yml")])
    const { groups } = await ask("/api/v1/rules")
    const states = () => Object.fromEntries(groups.flatMap(({ rules }) => rules.map(({ name, health, lastError }) => [name, lastError || health])))
    await until(async () => {
      groups.splice(0, groups.length, ...(await ask("/api/v1/rules")).groups)
      return Object.values(states()).every((health) => health === "ok")
    }, "all rules are evaluated", 10_000, states)
    const away = async () => (await ask("/api/v1/alerts")).alerts.filter(({ labels }) => labels.alertname === "RollcallRedisAway").map(({ state }) => state)
    assert.deepEqual(await away(), [])
    await redis.kill()
    await until(async () => (await away()).length === 2, "both nodes' alerts are pending or firing", 15_000, away)
    await redis.start()
    await until(async () => (await away()).length === 0, "and over", 20_000, away)
  })
})
