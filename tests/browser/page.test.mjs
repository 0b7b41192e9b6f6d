// The demo page in a real Chromium, against a real server: what two people with tabs see of each other.

import assert from "node:assert/strict"
import { existsSync, mkdirSync } from "node:fs"
import { after, afterEach, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { chromium } from "playwright-core"
import { holds, startNode, until } from "../phoenix/server.mjs"

const artifacts = fileURLToPath(new URL("../../artifacts/", import.meta.url))
const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
  .find((path) => path && existsSync(path))
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

/** A page as its visitor sees it. */
class Tab {
  constructor(page) {
    this.page = page
    this.errors = []
    page.on("pageerror", (error) => this.errors.push(String(error)))
  }

  at = (id) => this.page.getByTestId(id)

  /** Members by user, with what stands beside each. */
  members = () =>
    this.page.$$eval("[data-testid=member]", (all) =>
      Object.fromEntries(all.map((one) => {
        const tabs = one.querySelector("[data-testid=tabs]")
        return [one.dataset.user, { text: one.innerText, tabs: tabs && !tabs.hidden ? tabs.textContent.trim() : "" }]
      })))

  sees = (...users) =>
    until(async () => {
      const shown = Object.keys(await this.members()).sort()
      return JSON.stringify(shown) === JSON.stringify([...users].sort())
    }, `sees ${users}`, 10_000, this.members)

  feed = () => this.at("feed").innerText()
  is = (state, ms = 15_000) =>
    until(async () => (await this.at("state").getAttribute("data-state")) === state, `is ${state}`, ms)
}

describe("the demo page", () => {
  let browser, node, contexts
  before(async () => {
    mkdirSync(artifacts, { recursive: true })
    assert.ok(executablePath, "no Chromium found; name it in CHROMIUM")
    browser = await chromium.launch({ executablePath, args })
    contexts = []
    node = await startNode({ ROLLCALL_GRACE_SECONDS: "2" })
  })
  after(async () => {
    await browser?.close()
    await node?.stop()
  })
  afterEach(async () => {
    for (const context of contexts.splice(0)) await context.close()
  })

  let rooms = 0
  const room = () => `room:${++rooms}`

  /** A visitor with storage of its own. */
  async function visitor(options = {}) {
    const context = await browser.newContext(options)
    contexts.push(context)
    return context
  }
  async function open(context, query, server = node) {
    const tab = new Tab(await context.newPage())
    await tab.page.goto(`${server.url}/?${new URLSearchParams(query)}`)
    return tab
  }
  /** Somebody who has come in. */
  async function enter(name, channel, options) {
    const tab = await open(await visitor(options), { name, user: `u-${name.toLowerCase()}`, channel })
    await tab.is("online")
    return tab
  }

  test("two people see each other come, change and go", async () => {
    const channel = room()
    const ada = await enter("Ada", channel)
    const bob = await enter("Bob", channel)
    for (const tab of [ada, bob]) await tab.sees("u-ada", "u-bob")
    await bob.at("status-input").fill("writing tests")
    await bob.at("status-set").click()
    await until(async () => (await ada.members())["u-bob"].text.includes("writing tests"), "the status arrives")
    await until(async () => (await ada.at("rest-count").innerText()) === "2", "REST says the same", 10_000)
    assert.equal(await ada.at("online-count").innerText(), "2")
    await ada.page.screenshot({ path: `${artifacts}page.png` })
    await bob.page.context().close()
    await ada.sees("u-ada")
    await until(async () => /Bob.*left|Bob.*went|Bob.*out/i.test(await ada.feed()), "the feed tells it", 5000, ada.feed)
    assert.deepEqual(ada.errors, [])
  })

  test("two tabs of one person are one member, who stays with the last", async () => {
    const channel = room()
    const ada = await enter("Ada", channel)
    const context = await visitor()
    const query = { name: "Bob", user: "u-bob", channel }
    const [one, two] = [await open(context, query), await open(context, query)]
    await until(async () => (await ada.members())["u-bob"]?.tabs.includes("2"), "×2", 10_000, ada.members)
    assert.equal(await ada.at("online-count").innerText(), "2")
    await one.page.close()
    await until(async () => (await ada.members())["u-bob"]?.tabs === "", "one tab is left", 10_000, ada.members)
    await two.page.close()
    await ada.sees("u-ada")
  })

  test("a reload shows nobody anything", async () => {
    const channel = room()
    const ada = await enter("Ada", channel)
    const bob = await enter("Bob", channel)
    await ada.sees("u-ada", "u-bob")
    const before = await ada.feed()
    await bob.page.reload()
    await bob.is("online")
    await bob.sees("u-ada", "u-bob")
    // Longer than the grace: what is not told by then is not told.
    await holds(async () => (await ada.feed()) === before && "u-bob" in (await ada.members()), "nothing is told", 3000, ada.feed)
  })

  test("a leave is immediate, and a visitor may come back or only watch", async () => {
    const channel = room()
    const ada = await enter("Ada", channel)
    const bob = await enter("Bob", channel)
    await ada.sees("u-ada", "u-bob")
    await bob.at("leave").click()
    await until(async () => !("u-bob" in (await ada.members())), "gone at once", 1500, ada.members)
    await bob.page.getByRole("switch").check()
    await bob.at("join").click()
    await bob.sees("u-ada")
    await holds(async () => !("u-bob" in (await ada.members())), "who watches is not seen", 500)
  })

  test("names are text, whatever is in them", async () => {
    const channel = room()
    const name = "<img src=x onerror=alert(1)>"
    const ada = await enter("Ada", channel)
    await open(await visitor(), { name, user: "u-evil", channel })
    await ada.sees("u-ada", "u-evil")
    assert.equal(await ada.page.locator("[data-testid=member] img").count(), 0)
    assert.ok((await ada.members())["u-evil"].text.includes("<img"))
  })

  test("everything can be done from the keyboard", async () => {
    const tab = await open(await visitor(), {})
    await tab.at("name").focus()
    await tab.page.keyboard.press("Control+A")
    await tab.page.keyboard.type("Key")
    await tab.page.keyboard.press("Tab")
    await tab.page.keyboard.press("Control+A")
    await tab.page.keyboard.type(room())
    await tab.page.keyboard.press("Enter")
    await until(async () => Object.keys(await tab.members()).length === 1, "joined", 10_000, tab.members)
  })

  test("fits a phone, dark and light", async () => {
    for (const colorScheme of ["dark", "light"]) {
      const channel = room()
      const tab = await enter("Ada", channel, { viewport: { width: 360, height: 740 }, colorScheme })
      await enter("Bob", channel)
      await tab.sees("u-ada", "u-bob")
      const wide = await tab.page.evaluate(() => document.documentElement.scrollWidth - innerWidth)
      assert.ok(wide <= 0, `${wide} pixels too wide`)
      await tab.page.screenshot({ path: `${artifacts}phone-${colorScheme}.png`, fullPage: true })
    }
  })

  test("a server that restarts is found again, with the roster right", async () => {
    let server = await startNode()
    const { port, url } = server
    try {
      const channel = room()
      const tabs = []
      for (const name of ["Ada", "Bob"]) {
        const tab = await open(await visitor(), { name, user: `u-${name.toLowerCase()}`, channel }, { url })
        await tab.is("online")
        tabs.push(tab)
      }
      for (const tab of tabs) await tab.sees("u-ada", "u-bob")
      await server.stop("SIGKILL")
      await tabs[0].is("reconnecting")
      server = await startNode({}, port)
      for (const tab of tabs) {
        await tab.is("online", 30_000)
        await tab.sees("u-ada", "u-bob")
      }
    } finally {
      await server.stop()
    }
  })
})
