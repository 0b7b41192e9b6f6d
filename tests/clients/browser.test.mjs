// The real libraries in a real Chromium, each in a page of an application on another origin: one room, two nodes.

import assert from "node:assert/strict"
import { existsSync } from "node:fs"
import { readFile } from "node:fs/promises"
import http from "node:http"
import path from "node:path"
import { after, before, test } from "node:test"
import { fileURLToPath } from "node:url"
import { chromium } from "../browser/node_modules/playwright-core/index.mjs"
import { startRedis } from "../phoenix/redis.mjs"
import { startNode, until } from "../phoenix/server.mjs"
import { fresh, same } from "./people.mjs"

const modules = fileURLToPath(new URL("node_modules/", import.meta.url))
const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((file) => file && existsSync(file))
const WAIT = 10_000

/** What each application's page does: `window.users()`, `window.waves` and `window.wave(payload)`. */
const LIBRARIES = {
  supabase: {
    script: "@supabase/supabase-js/dist/umd/supabase.js",
    start: ({ url, room, user }) => {
      const channel = window.supabase.createClient(url, "any-key").channel(room, { config: { presence: { key: user } } })
      window.users = () => Object.keys(channel.presenceState())
      channel.on("presence", { event: "sync" }, () => {})
      channel.on("broadcast", { event: "wave" }, ({ payload }) => window.waves.push(payload))
      channel.subscribe((status) => status === "SUBSCRIBED" && channel.track({ name: user }))
      window.wave = (payload) => channel.send({ type: "broadcast", event: "wave", payload })
    },
  },
  phoenix: {
    script: "phoenix/priv/static/phoenix.js",
    start: ({ url, room, user }) => {
      const { Presence, Socket } = window.Phoenix
      const socket = new Socket(`${url.replace("http", "ws")}/socket`)
      const channel = socket.channel(room, { user_id: user, meta: { name: user } })
      const presence = new Presence(channel)
      window.users = () => presence.list((id) => id)
      channel.on("broadcast", ({ event, payload }) => event === "wave" && window.waves.push(payload))
      socket.connect()
      channel.join()
      window.wave = (payload) => channel.push("broadcast", { type: "broadcast", event: "wave", payload })
    },
  },
  pusher: {
    script: "pusher-js/dist/web/pusher.js",
    start: ({ url, room, user }) => {
      const { hostname, port } = new URL(url)
      const client = new window.Pusher("demo-key", {
        cluster: "any", wsHost: hostname, wsPort: port, forceTLS: false, enabledTransports: ["ws"],
        channelAuthorization: { endpoint: `${url}/pusher/auth`, params: { user_id: user, user_info: JSON.stringify({ name: user }) } },
      })
      const channel = client.subscribe(`presence-${room}`)
      window.users = () => Object.keys(channel.members.members)
      channel.bind("client-wave", (payload) => window.waves.push(payload))
      window.wave = (payload) => channel.trigger("client-wave", payload)
    },
  },
}

let browser, application, origin, redis, nodes

before(async () => {
  assert(executablePath, "no Chromium found; name it in CHROMIUM")
  application = http.createServer(async (request, answer) => {
    const file = decodeURIComponent(request.url).slice(1)
    const isKnown = Object.values(LIBRARIES).some(({ script }) => script === file)
    answer.setHeader("content-type", isKnown ? "text/javascript" : "text/html")
    answer.end(isKnown ? await readFile(path.join(modules, file)) : "<!doctype html><title>an application</title>")
  })
  await new Promise((resolve) => application.listen(0, "127.0.0.1", resolve))
  origin = `http://127.0.0.1:${application.address().port}`
  redis = await startRedis()
  nodes = await Promise.all([1, 2].map(() => startNode({ REDIS_URL: redis.url, ROLLCALL_ALLOWED_ORIGINS: origin, ROLLCALL_GRACE_SECONDS: "1" })))
  browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"] })
})
after(async () => {
  await browser?.close()
  await Promise.all(nodes?.map((node) => node.stop()) ?? [])
  await redis?.stop()
  application?.close()
})

test("supabase-js, phoenix and pusher-js in Chromium meet in one room on two nodes", async () => {
  const room = fresh()
  const pages = []
  for (const [at, [kind, { script, start }]] of Object.entries(LIBRARIES).entries()) {
    const page = await (await browser.newContext()).newPage()
    page.errors = []
    page.on("pageerror", (error) => page.errors.push(String(error)))
    page.on("console", (message) => message.type() === "error" && page.errors.push(message.text()))
    await page.goto(origin)
    await page.addScriptTag({ url: `${origin}/${script}` })
    await page.evaluate(() => (window.waves = []))
    await page.evaluate(start, { url: nodes[at % 2].url, room, user: kind })
    pages.push({ kind, page })
  }
  const users = ({ page }) => page.evaluate(() => window.users().sort())
  for (const one of pages) {
    await until(async () => same(await users(one), Object.keys(LIBRARIES).sort()), `${one.kind} sees all three`, WAIT, () => users(one))
  }
  for (const one of pages) {
    await one.page.evaluate((from) => void window.wave({ from }), one.kind)
    for (const other of pages.filter((page) => page !== one)) {
      const waves = () => other.page.evaluate(() => window.waves)
      await until(async () => (await waves()).some((wave) => same(wave, { from: one.kind })), `${other.kind} hears ${one.kind}`, WAIT, waves)
    }
  }
  // A reload is a new page of the same user: it leaves after the grace, as nobody calls it again.
  await pages[0].page.goto("about:blank")
  for (const one of pages.slice(1)) await until(async () => !(await users(one)).includes("supabase"), `${one.kind} sees the page go`, WAIT, () => users(one))
  for (const { kind, page } of pages) assert.deepEqual(page.errors, [], kind)
})
