// The demo page in a real browser, against the real server binary.
//
//     cargo build --release && cd tests/browser && npm ci && npm test
//
// ROLLCALL_BIN: another binary. CHROMIUM: another browser. Screenshots go to artifacts/.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { after, afterEach, before, describe, test } from "node:test";
import { chromium } from "playwright-core";

const root = fileURLToPath(new URL("../../", import.meta.url));
const binary = process.env.ROLLCALL_BIN ?? `${root}target/release/rollcall`;
const artifacts = `${root}artifacts/`;
const WAIT = { timeout: 15_000 };

let browser;
let server;
const contexts = [];

before(async () => {
  mkdirSync(artifacts, { recursive: true });
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  server = await start();
});
afterEach(async () => {
  await Promise.all(contexts.splice(0).map((context) => context.close()));
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

// ---- The server

async function freePort() {
  const probe = createServer().listen(0, "127.0.0.1");
  await new Promise((ready) => probe.once("listening", ready));
  const { port } = probe.address();
  await new Promise((closed) => probe.close(closed));
  return port;
}

async function start({ port, settings = {} } = {}) {
  port ??= await freePort();
  const env = { ...process.env, ROLLCALL_LISTEN: `127.0.0.1:${port}`, ROLLCALL_RATE_IP: "0", ROLLCALL_LOG: "warn", ...settings };
  for (const name of ["REDIS_URL", "DATABASE_URL"]) delete env[name];
  const child = spawn(binary, { cwd: root, env, stdio: ["ignore", "inherit", "inherit"] });
  const gone = new Promise((resolve) => child.once("exit", resolve).once("error", resolve));
  let hasExited = false;
  gone.then(() => (hasExited = true));
  const url = `http://127.0.0.1:${port}`;
  await until(async () => {
    assert.ok(!hasExited, `${binary} ended at once`);
    return (await fetch(`${url}/healthz`).catch(() => null))?.ok;
  });
  return {
    url,
    port,
    stop: async (signal = "SIGTERM") => {
      if (!hasExited) process.kill(child.pid, signal);
      await gone;
    },
  };
}

async function until(condition) {
  const end = Date.now() + WAIT.timeout;
  while (!(await condition())) {
    assert.ok(Date.now() < end, "waited too long");
    await new Promise((again) => setTimeout(again, 25));
  }
}

// ---- Pages

async function someone(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  contexts.push(context);
  return context;
}

/** Opens the page in a tab; every error and every refusal by the content security policy fails the test. */
async function open(context, query = {}, base = server.url) {
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT.timeout);
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(String(error)));
  page.on("console", (message) => {
    if (/Content.Security.Policy/i.test(message.text())) page.errors.push(message.text());
  });
  await page.goto(`${base}/?${new URLSearchParams(query)}`);
  return page;
}

async function enter(context, name, channel, user) {
  const page = await open(context, { name, channel, user });
  await member(page, user).waitFor();
  return page;
}

const member = (page, user) => page.locator(`[data-testid="member"][data-user="${user}"]`);
const at = (page, id) => page.getByTestId(id);

/** Who is there according to this page, sorted. */
const roster = (page) => at(page, "member").evaluateAll((tiles) => tiles.map((tile) => tile.dataset.user).sort());
const feed = (page, kind) => page.locator(`[data-testid="feed"] [data-kind="${kind}"]`);

async function hasText(locator, expected) {
  let seen;
  await until(async () => (seen = await locator.textContent({ timeout: WAIT.timeout })) && seen.includes(expected))
    .catch(() => assert.fail(`expected "${expected}", saw "${seen}"`));
}
async function isState(page, state) {
  await page.locator(`[data-testid="state"][data-state="${state}"]`).waitFor();
}
async function sees(page, users) {
  let seen;
  const expected = [...users].sort().join();
  await until(async () => (seen = (await roster(page)).join()) === expected)
    .catch(() => assert.fail(`expected members ${expected}, saw ${seen}`));
  await hasText(at(page, "online-count"), String(users.length));
}
const noErrors = (...pages) => assert.deepEqual(pages.flatMap((page) => page.errors), []);

// ---- What it should do

describe("members", () => {
  test("two users see each other appear", async () => {
    const ada = await enter(await someone(), "Ada", "appear", "u-ada");
    await isState(ada, "online");
    await sees(ada, ["u-ada"]);
    const grace = await enter(await someone(), "Grace", "appear", "u-grace");
    await sees(ada, ["u-ada", "u-grace"]);
    await sees(grace, ["u-ada", "u-grace"]);
    await hasText(feed(ada, "join").first(), "Grace came in");
    await hasText(member(grace, "u-ada"), "Ada");
    noErrors(ada, grace);
  });

  test("a status shows to the others", async () => {
    const ada = await enter(await someone(), "Ada", "status", "u-ada");
    const grace = await enter(await someone(), "Grace", "status", "u-grace");
    await at(ada, "status-input").fill("back in five");
    await at(ada, "status-set").click();
    await hasText(member(grace, "u-ada"), "back in five");
    await ada.getByRole("radio", { name: "Away" }).check();
    await grace.locator('[data-user="u-ada"][data-availability="away"]').waitFor();
    await hasText(feed(grace, "update").first(), "Ada is away: back in five");
    assert.equal(await feed(grace, "leave").count(), 0, "an update is not a leave");
    noErrors(ada, grace);
  });

  test("closing a tab makes the member go, after the grace", async () => {
    const ada = await enter(await someone(), "Ada", "close", "u-ada");
    const grace = await enter(await someone(), "Grace", "close", "u-grace");
    await sees(ada, ["u-ada", "u-grace"]);
    await grace.close();
    await sees(ada, ["u-ada"]);
    await hasText(feed(ada, "leave").first(), "Grace left");
  });

  test("Leave is immediate, Join comes back", async () => {
    const ada = await enter(await someone(), "Ada", "leave", "u-ada");
    const grace = await enter(await someone(), "Grace", "leave", "u-grace");
    await sees(ada, ["u-ada", "u-grace"]);
    const start = Date.now();
    await at(grace, "leave").click();
    await sees(ada, ["u-ada"]);
    assert.ok(Date.now() - start < 1_500, "an explicit leave does not wait for the grace");
    await at(grace, "join").click();
    await sees(ada, ["u-ada", "u-grace"]);
  });

  test("two tabs of one user are one member, and closing one keeps it", async () => {
    const context = await someone();
    const first = await open(context, { name: "Ada", channel: "tabs" });
    await at(first, "member").waitFor();
    const grace = await enter(await someone(), "Grace", "tabs", "u-grace");
    const second = await open(context, { name: "Ada", channel: "tabs" }); // No user given: the browser's own id.
    await until(async () => (await at(grace, "member").count()) === 2);
    const [user] = (await roster(grace)).filter((id) => id !== "u-grace");
    const tabs = member(grace, user).getByTestId("tabs");
    await hasText(tabs, "×2");
    await tabs.waitFor();
    await sees(second, [user, "u-grace"]);
    assert.equal(await feed(grace, "join").filter({ hasText: "Ada" }).count(), 0, "a second tab is no join");
    await hasText(feed(grace, "tab").first(), "Ada opened another tab");
    await second.close();
    await tabs.waitFor({ state: "hidden" });
    await sees(grace, [user, "u-grace"]);
    assert.equal(await feed(grace, "leave").count(), 0);
  });

  test("a reload shows nobody a leave", async () => {
    const ada = await enter(await someone(), "Ada", "reload", "u-ada");
    const grace = await enter(await someone(), "Grace", "reload", "u-grace");
    await sees(ada, ["u-ada", "u-grace"]);
    await grace.reload();
    await sees(grace, ["u-ada", "u-grace"]);
    // Everything the reload could have caused comes before what Ada hears of a member that comes and goes after it.
    const late = await enter(await someone(), "Linus", "reload", "u-linus");
    await late.close();
    await hasText(feed(ada, "leave").first(), "Linus left");
    assert.equal(await feed(ada, "leave").count(), 1, "only Linus left");
    assert.equal(await feed(ada, "join").filter({ hasText: "Grace" }).count(), 1, "Grace came in once");
    await sees(ada, ["u-ada", "u-grace"]);
  });

  test("watching is not being there", async () => {
    const ada = await enter(await someone(), "Ada", "watch", "u-ada");
    const grace = await enter(await someone(), "Grace", "watch", "u-grace");
    await sees(ada, ["u-ada", "u-grace"]);
    const watch = grace.getByRole("switch", { name: /watch only/i });
    await watch.check();
    await sees(ada, ["u-ada"]);
    await sees(grace, ["u-ada"]);
    await grace.reload();
    await sees(grace, ["u-ada"]);
    await watch.uncheck();
    await sees(ada, ["u-ada", "u-grace"]);
    assert.equal(await feed(ada, "join").filter({ hasText: "Grace" }).count(), 2, "the reload made nobody seen");
  });

  test("a name with HTML in it is text", async () => {
    const name = "<img src=x onerror=alert(1)><b>Eve</b>";
    const ada = await enter(await someone(), "Ada", "html", "u-ada");
    const eve = await enter(await someone(), name, "html", "u-<i>eve</i>");
    await hasText(member(ada, "u-<i>eve</i>"), name);
    await hasText(feed(ada, "join").first(), name);
    assert.equal(await ada.locator("main img, main i, [data-testid=member] b").count(), 0);
    noErrors(ada, eve);
  });
});

describe("connection", () => {
  test("the REST count agrees with the live one", async () => {
    const ada = await enter(await someone(), "Ada", "a b/ü:1", "u-ada");
    await hasText(at(ada, "rest-count"), "1");
    await enter(await someone(), "Grace", "a b/ü:1", "u-grace");
    await sees(ada, ["u-ada", "u-grace"]);
    await hasText(at(ada, "rest-count"), "2");
    await ada.locator('[data-agree="yes"]').waitFor();
  });

  for (const signal of ["SIGTERM", "SIGKILL"]) {
    test(`after ${signal} and a new start on the same port, all are back`, async () => {
      let own = await start();
      try {
        const query = (name) => ({ name, channel: "restart", user: `u-${name.toLowerCase()}` });
        const ada = await open(await someone(), query("Ada"), own.url);
        const grace = await open(await someone(), query("Grace"), own.url);
        await sees(ada, ["u-ada", "u-grace"]);
        await own.stop(signal);
        await isState(ada, "reconnecting");
        await isState(grace, "reconnecting");
        own = await start({ port: own.port });
        for (const page of [ada, grace]) {
          await isState(page, "online");
          await sees(page, ["u-ada", "u-grace"]);
          await hasText(at(page, "rest-count"), "2");
        }
        noErrors(ada, grace);
      } finally {
        await own.stop();
      }
    });
  }

  test("a server that wants sessions gives the page an anonymous one", async () => {
    const own = await start({ settings: { ROLLCALL_AUTH: "session", ROLLCALL_ANONYMOUS: "on" } });
    try {
      const page = await open(await someone(), { name: "Ada", channel: "session" }, own.url);
      await isState(page, "online");
      await page.locator('[data-testid="member"].me').waitFor();
      await hasText(at(page, "rest-count"), "1");
    } finally {
      await own.stop();
    }
  });

  test("without anonymous sessions the page says what is missing", async () => {
    const own = await start({ settings: { ROLLCALL_AUTH: "session", ROLLCALL_ANONYMOUS: "off" } });
    try {
      const page = await open(await someone(), { name: "Ada", channel: "session" }, own.url);
      await hasText(page.getByRole("alert"), "This server wants a session");
      await page.getByRole("button", { name: "Get an anonymous session" }).waitFor();
    } finally {
      await own.stop();
    }
  });
});

describe("for everyone", () => {
  test("the keyboard is enough to join, set a status and leave", async () => {
    const grace = await enter(await someone(), "Grace", "keys", "u-grace");
    const ada = await open(await someone(), { user: "u-ada" });
    const focusOn = async (id) => {
      for (let presses = 0; presses < 20; presses++) {
        await ada.keyboard.press("Tab");
        if (await ada.evaluate((wanted) => document.activeElement?.dataset.testid === wanted, id)) return;
      }
      assert.fail(`Tab never came to ${id}`);
    };
    await focusOn("name");
    const outline = await ada.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(outline, "none", "focus is visible");
    await ada.keyboard.press("Control+A");
    await ada.keyboard.type("Ada");
    await focusOn("channel");
    await ada.keyboard.press("Control+A");
    await ada.keyboard.type("keys");
    await focusOn("join");
    await ada.keyboard.press("Enter");
    await sees(grace, ["u-ada", "u-grace"]);
    await ada.waitForFunction(() => document.activeElement?.dataset.testid === "leave");
    await focusOn("status-input");
    await ada.keyboard.type("typing");
    await ada.keyboard.press("Enter");
    await hasText(member(grace, "u-ada"), "typing");
    for (let presses = 0; presses < 20; presses++) {
      if (await ada.evaluate(() => document.activeElement?.dataset.testid === "leave")) break;
      await ada.keyboard.press("Shift+Tab");
    }
    await ada.keyboard.press("Enter");
    await sees(grace, ["u-grace"]);
  });

  test("a phone scrolls in one direction only", async () => {
    const context = await someone({ viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true });
    const page = await enter(context, "Ada with-a-name-that-has-no-end-and-no-space", "phone-with-a-rather-long-name-0123456789", "u-ada");
    const isNarrow = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
    assert.ok(await isNarrow());
    await at(page, "leave").tap();
    await at(page, "join").waitFor();
    assert.ok(await isNarrow());
  });

  test("the theme is remembered", async () => {
    const page = await enter(await someone({ colorScheme: "light" }), "Ada", "theme", "u-ada");
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await ground();
    await page.getByRole("button", { name: "Dark theme" }).click();
    const dark = await ground();
    assert.notEqual(dark, light);
    await page.reload();
    assert.equal(await ground(), dark);
  });
});

describe("screenshots", () => {
  const people = [
    ["Amara Okafor", "", "available"], ["Björn Lind", "reviewing the migration", "available"], ["Chen Wei", "", "busy"],
    ["Dalia Haddad", "on the train, patchy signal", "available"], ["Elif Kaya", "lunch", "away"], ["Farid Rahimi", "", "available"],
    ["Greta Weiss", "pairing with Hiro", "available"], ["Hiro Tanaka", "", "busy"], ["Inês Duarte", "", "available"],
    ["Jonas Berg", "back at three", "away"], ["Kemi Ade", "", "available"], ["Lucía Vega", "reading", "available"],
  ];

  /** The crowd is one page that uses the client alone. */
  async function crowd() {
    const page = await (await someone()).newPage();
    await page.goto(`${server.url}/rollcall.js`);
    await page.evaluate(async (crowd) => {
      const { Rollcall } = await import("/rollcall.js");
      const arrivals = crowd.map(([name, status, availability], index) => new Promise((arrived) => {
        const own = new Rollcall("/socket");
        const room = own.join("lobby", { user: `u-${index}`, meta: { name, status, availability } });
        room.onchange = () => room.roster.has(`u-${index}`) && arrived();
        own.connect();
      }));
      await Promise.all(arrivals);
    }, people);
  }

  test("desktop in both themes, and a phone", async () => {
    await crowd();
    const views = [
      ["desktop-light", { colorScheme: "light" }],
      ["desktop-dark", { colorScheme: "dark" }],
      ["phone", { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, colorScheme: "light" }],
    ];
    for (const [name, options] of views) {
      const page = await enter(await someone({ ...options, reducedMotion: "reduce" }), "Ada Lovelace", "lobby", "u-ada");
      await until(async () => (await at(page, "member").count()) === people.length + 1);
      await page.locator('[data-agree="yes"]').waitFor();
      await page.screenshot({ path: `${artifacts}${name}.png`, fullPage: name === "phone" });
      await at(page, "leave").click();
    }
  });
});
