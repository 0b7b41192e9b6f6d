// The demo page in a real Chromium, against the real server: what people with tabs see of each other.
//
// CHROMIUM names another browser. Screenshots go to artifacts/.

import assert from "node:assert/strict"
import { existsSync, mkdirSync } from "node:fs"
import { after, afterEach, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { chromium } from "playwright-core"
import { startNode, until } from "../phoenix/server.mjs"

const artifacts = fileURLToPath(new URL("../../artifacts/", import.meta.url))
const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
  .find((path) => path && existsSync(path))
const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"]
const WAIT = 15_000

let browser
let server
const contexts = []

before(async () => {
  mkdirSync(artifacts, { recursive: true })
  assert.ok(executablePath, "no Chromium found; name it in CHROMIUM")
  browser = await chromium.launch({ executablePath, args })
  server = await startNode({ ROLLCALL_GRACE_SECONDS: "2" })
})
afterEach(async () => {
  await Promise.all(contexts.splice(0).map((context) => context.close()))
})
after(async () => {
  await browser?.close()
  await server?.stop()
})

// ---- Pages

async function someone(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options })
  contexts.push(context)
  return context
}

/** Opens the page in a tab; every error and every refusal by the content security policy fails the test. */
async function open(context, query = {}, base = server.url) {
  const page = await context.newPage()
  page.setDefaultTimeout(WAIT)
  page.errors = []
  page.on("pageerror", (error) => page.errors.push(String(error)))
  page.on("console", (message) => {
    if (/Content.Security.Policy/i.test(message.text())) page.errors.push(message.text())
  })
  await page.goto(`${base}/?${new URLSearchParams(query)}`)
  return page
}

async function enter(context, name, channel, user) {
  const page = await open(context, { name, channel, user })
  await member(page, user).waitFor()
  return page
}

const member = (page, user) => page.locator(`[data-testid="member"][data-user="${user}"]`)
const at = (page, id) => page.getByTestId(id)

/** Who is there according to this page, sorted. */
const roster = (page) => at(page, "member").evaluateAll((tiles) => tiles.map((tile) => tile.dataset.user).sort())
const feed = (page, kind) => page.locator(`[data-testid="feed"] [data-kind="${kind}"]`)

const hasText = (locator, text) =>
  until(async () => (await locator.textContent({ timeout: 1000 })).includes(text), `"${text}" is shown`, WAIT,
    () => locator.allTextContents())
const isState = (page, state) =>
  until(async () => (await at(page, "state").getAttribute("data-state")) === state, `is ${state}`, WAIT)

async function sees(page, users) {
  const expected = [...users].sort().join()
  await until(async () => (await roster(page)).join() === expected, `sees ${expected}`, WAIT, () => roster(page))
  await until(async () => (await at(page, "online-count").textContent()) === String(users.length), "counts them", WAIT)
}
/** So many lines of the feed. It is painted less often than the members, so what is there now may not be all. */
const count = (lines, expected, why) =>
  until(async () => (await lines.count()) === expected, `${expected} of these lines: ${why}`, WAIT, () => lines.allTextContents())
/** No tile comes, goes or glows any more. */
const isStill = (page) => page.waitForFunction(() => !document.querySelector("#wall :is(.coming, .going, .changed)"))
/** A page full of people, `[name, status, availability]`: it uses the client alone. */
async function crowd(channel, people) {
  const page = await (await someone()).newPage()
  await page.goto(`${server.url}/rollcall.js`)
  await page.evaluate(async ({ channel, people }) => {
    const { Rollcall } = await import("/rollcall.js")
    const arrivals = people.map(([name, status, availability]) => new Promise((arrived) => {
      const own = new Rollcall()
      const room = own.join(channel, { user: name, meta: { name, status, availability } })
      room.onchange = () => room.roster.has(name) && arrived()
      own.connect()
    }))
    await Promise.all(arrivals)
  }, { channel, people })
}
const noErrors = (...pages) => assert.deepEqual(pages.flatMap((page) => page.errors), [])

// ---- What it should do

describe("members", () => {
  test("two users see each other appear", async () => {
    const ada = await enter(await someone(), "Ada", "appear", "u-ada")
    await isState(ada, "online")
    await sees(ada, ["u-ada"])
    const grace = await enter(await someone(), "Grace", "appear", "u-grace")
    await sees(ada, ["u-ada", "u-grace"])
    await sees(grace, ["u-ada", "u-grace"])
    await hasText(feed(ada, "join").first(), "Grace came in")
    await hasText(member(grace, "u-ada"), "Ada")
    noErrors(ada, grace)
  })

  test("a status shows to the others", async () => {
    const ada = await enter(await someone(), "Ada", "status", "u-ada")
    const grace = await enter(await someone(), "Grace", "status", "u-grace")
    await at(ada, "status-input").fill("back in five")
    await at(ada, "status-set").click()
    await hasText(member(grace, "u-ada"), "back in five")
    await ada.getByRole("radio", { name: "Away" }).check()
    await grace.locator('[data-user="u-ada"][data-availability="away"]').waitFor()
    await hasText(feed(grace, "update").first(), "Ada is away: back in five")
    assert.equal(await feed(grace, "leave").count(), 0, "an update is not a leave")
    noErrors(ada, grace)
  })

  test("closing a tab makes the member go, after the grace", async () => {
    const ada = await enter(await someone(), "Ada", "close", "u-ada")
    const grace = await enter(await someone(), "Grace", "close", "u-grace")
    await sees(ada, ["u-ada", "u-grace"])
    await grace.close()
    await sees(ada, ["u-ada"])
    await hasText(feed(ada, "leave").first(), "Grace left")
  })

  test("Leave is immediate, Join comes back", async () => {
    const ada = await enter(await someone(), "Ada", "leave", "u-ada")
    const grace = await enter(await someone(), "Grace", "leave", "u-grace")
    await sees(ada, ["u-ada", "u-grace"])
    const start = Date.now()
    await at(grace, "leave").click()
    await sees(ada, ["u-ada"])
    assert.ok(Date.now() - start < 1_500, "an explicit leave does not wait for the grace")
    await at(grace, "join").click()
    await sees(ada, ["u-ada", "u-grace"])
  })

  test("two tabs of one user are one member, and closing one keeps it", async () => {
    const context = await someone()
    const first = await open(context, { name: "Ada", channel: "tabs" })
    await at(first, "member").waitFor()
    const grace = await enter(await someone(), "Grace", "tabs", "u-grace")
    const second = await open(context, { name: "Ada", channel: "tabs" }); // No user given: the browser's own id.
    await until(async () => (await at(grace, "member").count()) === 2, "Ada is there", WAIT)
    const [user] = (await roster(grace)).filter((id) => id !== "u-grace")
    const tabs = member(grace, user).getByTestId("tabs")
    await hasText(tabs, "×2")
    await tabs.waitFor()
    await sees(second, [user, "u-grace"])
    assert.equal(await feed(grace, "join").filter({ hasText: "Ada" }).count(), 0, "a second tab is no join")
    await hasText(feed(grace, "tab").first(), "Ada opened another tab")
    await second.close()
    await tabs.waitFor({ state: "hidden" })
    await sees(grace, [user, "u-grace"])
    assert.equal(await feed(grace, "leave").count(), 0)
  })

  test("a reload shows nobody a leave", async () => {
    const ada = await enter(await someone(), "Ada", "reload", "u-ada")
    const grace = await enter(await someone(), "Grace", "reload", "u-grace")
    await sees(ada, ["u-ada", "u-grace"])
    await isStill(ada)
    await ada.evaluate(() => {
      window.touched = []
      const isHers = (node) => Boolean((node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement)?.closest('[data-user="u-grace"]'))
      const note = ({ type, target, addedNodes, removedNodes }) => [target, ...addedNodes, ...removedNodes].some(isHers) && touched.push(`${type} of ${target.className}`)
      new MutationObserver((records) => records.forEach(note)).observe(document.querySelector("#wall"), { subtree: true, childList: true, attributes: true, characterData: true })
    })
    const key = await grace.evaluate(() => sessionStorage.getItem("rollcall.resume"))
    await grace.reload()
    await sees(grace, ["u-ada", "u-grace"])
    assert.equal(await grace.evaluate(() => sessionStorage.getItem("rollcall.resume")), key, "the tab has its key still")
    // Everything the reload could have caused comes before what Ada hears of a member that comes and goes after it.
    const late = await enter(await someone(), "Linus", "reload", "u-linus")
    await late.close()
    await hasText(feed(ada, "leave").first(), "Linus left")
    await count(feed(ada, "leave"), 1, "only Linus left")
    await count(at(ada, "feed").locator("li", { hasText: "Grace" }), 1, "about Grace: she came in")
    await sees(ada, ["u-ada", "u-grace"])
    assert.deepEqual(await ada.evaluate(() => touched), [], "nothing of Grace's tile was touched")
  })

  test("a duplicated tab, which has the same key, is another tab", async () => {
    const ada = await enter(await someone(), "Ada", "duplicate", "u-ada")
    const grace = await enter(await someone(), "Grace", "duplicate", "u-grace")
    await sees(ada, ["u-ada", "u-grace"])
    const opened = grace.waitForEvent("popup")
    await grace.evaluate(() => void open(location.href)) // As a browser duplicates: with what the session stores.
    const copy = await opened
    await member(copy, "u-grace").waitFor()
    const keys = await Promise.all([grace, copy].map((page) => page.evaluate(() => sessionStorage.getItem("rollcall.resume"))))
    assert.equal(keys[0], keys[1])
    const tabs = member(ada, "u-grace").getByTestId("tabs")
    await hasText(tabs, "×2")
    await copy.close()
    await tabs.waitFor({ state: "hidden" })
    await sees(ada, ["u-ada", "u-grace"])
    assert.equal(await feed(ada, "leave").count(), 0)
    await count(feed(ada, "join").filter({ hasText: "Grace" }), 1, "she came once")
  })

  test("watching is not being there", async () => {
    const ada = await enter(await someone(), "Ada", "watch", "u-ada")
    const grace = await enter(await someone(), "Grace", "watch", "u-grace")
    await sees(ada, ["u-ada", "u-grace"])
    const watch = grace.getByRole("switch", { name: /watch only/i })
    await watch.check()
    await sees(ada, ["u-ada"])
    await sees(grace, ["u-ada"])
    await grace.reload()
    await sees(grace, ["u-ada"])
    await watch.uncheck()
    await sees(ada, ["u-ada", "u-grace"])
    await count(feed(ada, "join").filter({ hasText: "Grace" }), 2, "the reload made nobody seen")
  })

  test("a name with HTML in it is text", async () => {
    const name = "<img src=x onerror=alert(1)><b>Eve</b>"
    const ada = await enter(await someone(), "Ada", "html", "u-ada")
    const eve = await enter(await someone(), name, "html", "u-<i>eve</i>")
    await hasText(member(ada, "u-<i>eve</i>"), name)
    await hasText(feed(ada, "join").first(), name)
    assert.equal(await ada.locator("main img, main i, [data-testid=member] b").count(), 0)
    noErrors(ada, eve)
  })
})

describe("connection", () => {
  test("in a full room some are shown and all are counted", async () => {
    await crowd("full", Array.from({ length: 229 }, (_, index) => [`guest ${index}`]))
    const ada = await enter(await someone(), "Ada", "full", "u-ada")
    await hasText(at(ada, "online-count"), "230")
    await hasText(ada.locator("#more"), "+30 more")
    assert.equal((await roster(ada)).length, 200)
    assert.equal((await roster(ada)).includes("u-ada"), true, "oneself is always shown")
    await hasText(at(ada, "rest-count"), "230")
  })

  test("the REST count agrees with the live one", async () => {
    const ada = await enter(await someone(), "Ada", "a b/ü:1", "u-ada")
    await hasText(at(ada, "rest-count"), "1")
    await enter(await someone(), "Grace", "a b/ü:1", "u-grace")
    await sees(ada, ["u-ada", "u-grace"])
    await hasText(at(ada, "rest-count"), "2")
    await ada.locator('[data-agree="yes"]').waitFor()
  })

  for (const signal of ["SIGTERM", "SIGKILL"]) {
    test(`after ${signal} and a new start on the same port, all are back`, async () => {
      let own = await startNode()
      try {
        const query = (name) => ({ name, channel: "restart", user: `u-${name.toLowerCase()}` })
        const ada = await open(await someone(), query("Ada"), own.url)
        const grace = await open(await someone(), query("Grace"), own.url)
        await sees(ada, ["u-ada", "u-grace"])
        await own.stop(signal)
        await isState(ada, "reconnecting")
        await isState(grace, "reconnecting")
        own = await startNode({}, own.port)
        for (const page of [ada, grace]) {
          await isState(page, "online")
          await sees(page, ["u-ada", "u-grace"])
          await hasText(at(page, "rest-count"), "2")
        }
        noErrors(ada, grace)
      } finally {
        await own.stop()
      }
    })
  }

  test("a server that wants sessions gives the page an anonymous one", async () => {
    const own = await startNode({ ROLLCALL_AUTH: "session", ROLLCALL_ANONYMOUS: "on" })
    try {
      const page = await open(await someone(), { name: "Ada", channel: "session" }, own.url)
      await isState(page, "online")
      await page.locator('[data-testid="member"].me').waitFor()
      await hasText(at(page, "rest-count"), "1")
    } finally {
      await own.stop()
    }
  })

  test("without anonymous sessions the page says what is missing", async () => {
    const own = await startNode({ ROLLCALL_AUTH: "session", ROLLCALL_ANONYMOUS: "off" })
    try {
      const page = await open(await someone(), { name: "Ada", channel: "session" }, own.url)
      await hasText(page.getByRole("alert"), "This server wants a session")
      await page.getByRole("button", { name: "Get an anonymous session" }).waitFor()
    } finally {
      await own.stop()
    }
  })
})

describe("for everyone", () => {
  test("the keyboard is enough to join, set a status and leave", async () => {
    const grace = await enter(await someone(), "Grace", "keys", "u-grace")
    const ada = await open(await someone(), { user: "u-ada" })
    const focusOn = async (id) => {
      for (let presses = 0; presses < 20; presses++) {
        await ada.keyboard.press("Tab")
        if (await ada.evaluate((wanted) => document.activeElement?.dataset.testid === wanted, id)) return
      }
      assert.fail(`Tab never came to ${id}`)
    }
    await focusOn("name")
    const outline = await ada.evaluate(() => getComputedStyle(document.activeElement).outlineStyle)
    assert.notEqual(outline, "none", "focus is visible")
    await ada.keyboard.press("Control+A")
    await ada.keyboard.type("Ada")
    await focusOn("channel")
    await ada.keyboard.press("Control+A")
    await ada.keyboard.type("keys")
    await focusOn("join")
    await ada.keyboard.press("Enter")
    await sees(grace, ["u-ada", "u-grace"])
    await ada.waitForFunction(() => document.activeElement?.dataset.testid === "leave")
    await focusOn("status-input")
    await ada.keyboard.type("typing")
    await ada.keyboard.press("Enter")
    await hasText(member(grace, "u-ada"), "typing")
    for (let presses = 0; presses < 20; presses++) {
      if (await ada.evaluate(() => document.activeElement?.dataset.testid === "leave")) break
      await ada.keyboard.press("Shift+Tab")
    }
    await ada.keyboard.press("Enter")
    await sees(grace, ["u-grace"])
  })

  test("a phone scrolls in one direction only", async () => {
    const context = await someone({ viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true })
    const page = await enter(context, "Ada with-a-name-that-has-no-end-and-no-space", "phone-with-a-rather-long-name-0123456789", "u-ada")
    const isNarrow = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)
    assert.ok(await isNarrow())
    await at(page, "leave").tap()
    await at(page, "join").waitFor()
    assert.ok(await isNarrow())
  })

  test("the theme is remembered", async () => {
    const page = await enter(await someone({ colorScheme: "light" }), "Ada", "theme", "u-ada")
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor)
    const light = await ground()
    await page.getByRole("button", { name: "Dark theme" }).click()
    const dark = await ground()
    assert.notEqual(dark, light)
    await page.reload()
    assert.equal(await ground(), dark)
  })
})

describe("protocols", () => {
  const SPOKEN = { phoenix: "u-ada", supabase: "u-grace", pusher: "u-alan" }

  test("tabs that speak different protocols see each other, and a wave reaches all", async () => {
    const pages = {}
    for (const [protocol, user] of Object.entries(SPOKEN)) {
      pages[protocol] = await open(await someone(), { name: user, channel: "babel", user, protocol })
      await member(pages[protocol], user).waitFor()
    }
    const watcher = await open(await someone(), { name: "Eve", channel: "babel", user: "u-eve", protocol: "events" })
    for (const page of [...Object.values(pages), watcher]) await sees(page, Object.values(SPOKEN))
    for (const [protocol, page] of Object.entries(pages)) {
      await at(page, "wave").click()
      await count(feed(page, "wave").filter({ hasText: "You wave" }), 1, `${protocol} waves`)
      for (const other of Object.values(pages).filter((one) => one !== page)) {
        await count(feed(other, "wave").filter({ hasText: `${SPOKEN[protocol]} waves` }), 1, `${protocol}'s wave is seen`)
      }
    }
    await at(pages.pusher, "leave").click()
    for (const page of [pages.phoenix, pages.supabase, watcher]) await sees(page, ["u-ada", "u-grace"])
    assert.equal(await at(watcher, "wave").isVisible(), false, "who can only watch is not offered to wave")
    noErrors(...Object.values(pages), watcher)
  })

  test("a status shows to the others, whatever either speaks", async () => {
    const watcher = await open(await someone(), { name: "Eve", channel: "moods", user: "u-eve", protocol: "phoenix" })
    for (const [protocol, user] of Object.entries(SPOKEN)) {
      const page = await open(await someone(), { name: user, channel: "moods", user, protocol })
      await member(page, user).waitFor()
      await at(page, "status-input").fill(`speaks ${protocol}`)
      await at(page, "status-set").click()
      await hasText(member(watcher, user), `speaks ${protocol}`)
      noErrors(page)
    }
  })

  test("another protocol is taken up without a reload, and kept by one", async () => {
    const grace = await enter(await someone(), "Grace", "switch", "u-grace")
    const ada = await enter(await someone(), "Ada", "switch", "u-ada")
    for (const protocol of ["supabase", "pusher", "phoenix", "supabase"]) {
      await at(ada, "protocol").selectOption(protocol)
      await isState(ada, "online")
      await sees(ada, ["u-ada", "u-grace"])
      await at(ada, "wave").click()
    }
    await count(feed(grace, "wave"), 4, "each protocol carries a wave")
    await ada.reload()
    await sees(ada, ["u-ada", "u-grace"])
    assert.equal(await at(ada, "protocol").inputValue(), "supabase")
    noErrors(ada, grace)
  })
})

describe("the page of the examples", () => {
  test("shows each file as it is served, and fits a phone", async () => {
    const context = await someone({ viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true })
    const page = await open(context)
    await page.getByRole("link", { name: "Ten lines" }).click()
    const boxes = page.locator("[data-file]")
    await until(async () => (await boxes.count()) === 6, "six examples", WAIT)
    for (const box of await boxes.all()) {
      const file = await box.getAttribute("data-file")
      const served = await (await fetch(`${server.url}/examples/${file}`)).text()
      await until(async () => (await box.textContent()) === served.trimEnd(), `${file} is shown`, WAIT)
    }
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth))
    await page.screenshot({ path: `${artifacts}examples-phone.png`, fullPage: true })
    noErrors(page)
  })
})

describe("screenshots", () => {
  const people = [
    ["Amara Okafor", "", "available"], ["Björn Lind", "reviewing the migration", "available"], ["Chen Wei", "", "busy"],
    ["Dalia Haddad", "on the train, patchy signal", "available"], ["Elif Kaya", "lunch", "away"], ["Farid Rahimi", "", "available"],
    ["Greta Weiss", "pairing with Hiro", "available"], ["Hiro Tanaka", "", "busy"], ["Inês Duarte", "", "available"],
    ["Jonas Berg", "back at three", "away"], ["Kemi Ade", "", "available"], ["Lucía Vega", "reading", "available"],
  ]

  test("desktop in both themes, and a phone", async () => {
    await crowd("lobby", [...people, people[3]]) // One has two tabs.
    const views = [
      ["desktop-light", { colorScheme: "light" }],
      ["desktop-dark", { colorScheme: "dark" }],
      ["phone", { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, colorScheme: "light" }],
    ]
    for (const [name, options] of views) {
      const page = await enter(await someone({ ...options, reducedMotion: "reduce" }), "Ada Lovelace", "lobby", "u-ada")
      await until(async () => (await at(page, "member").count()) === people.length + 1, "all are there", WAIT)
      await page.locator('[data-agree="yes"]').waitFor()
      await page.screenshot({ path: `${artifacts}${name}.png`, fullPage: name === "phone" })
      await at(page, "leave").click()
    }
  })
})
