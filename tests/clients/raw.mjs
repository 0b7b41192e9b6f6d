// Single frames: what a client sends and is told, byte for byte where that matters.

import { createHmac } from "node:crypto"
import WebSocket from "ws"
import { until } from "../phoenix/server.mjs"
import { APP } from "./people.mjs"

const opened = new Set()
export function closeRaw() {
  for (const socket of opened) socket.terminate()
  opened.clear()
}

/** Opens a socket and keeps what comes: `told` (parsed text), `bytes` (binary), `closed` (the code). */
export async function open(node, path, options = {}) {
  const socket = new WebSocket(`ws://127.0.0.1:${node.port}${path}`, options)
  opened.add(socket)
  const raw = { socket, told: [], bytes: [], closed: null }
  socket.on("message", (data, isBinary) => (isBinary ? raw.bytes.push(data) : raw.told.push(JSON.parse(data))))
  socket.on("close", (code, reason) => (raw.closed = { code, reason: String(reason) }))
  socket.on("error", (error) => (raw.error = error))
  raw.say = (message) => socket.send(typeof message === "string" || Buffer.isBuffer(message) ? message : JSON.stringify(message))
  raw.find = async (test, what, ms = 4000) => {
    await until(() => raw.told.some(test), what, ms, () => raw.told)
    return raw.told.find(test)
  }
  await until(() => socket.readyState === 1 || raw.closed || raw.error, "the socket opens")
  return raw
}

export const hmac = (text, secret = APP.secret) => createHmac("sha256", secret).update(text).digest("hex")

/** A Pusher socket that has been told its id. */
export async function openPusher(node, key = APP.key, query = "protocol=7&client=js&version=8.6.0") {
  const raw = await open(node, `/app/${key}?${query}`)
  const hello = await raw.find(({ event }) => event === "pusher:connection_established", "the hello")
  raw.hello = JSON.parse(hello.data)
  raw.id = raw.hello.socket_id
  raw.subscribe = (channel, channel_data, auth) => {
    auth ??= channel.startsWith("private-") || channel.startsWith("presence-") ? `${APP.key}:${hmac([raw.id, channel, channel_data].filter((part) => part !== undefined).join(":"))}` : ""
    raw.say({ event: "pusher:subscribe", data: { channel, auth, ...(channel_data !== undefined && { channel_data }) } })
  }
  raw.joined = (channel) => raw.find((message) => message.channel === channel && message.event === "pusher_internal:subscription_succeeded", `subscribed to ${channel}`)
  raw.join = async (channel, channel_data) => (raw.subscribe(channel, channel_data), raw.joined(channel))
  raw.events = (channel, event) => raw.told.filter((message) => message.channel === channel && message.event === event)
  return raw
}

/** A Supabase or Phoenix socket that speaks arrays. */
export async function openArrays(node, path) {
  const raw = await open(node, path)
  let ref = 0
  raw.call = async (topic, event, payload, joinRef = "1") => {
    const mine = event === "phx_join" ? joinRef : `r${++ref}`
    const before = raw.told.length
    raw.say([joinRef, mine, topic, event, payload])
    await until(() => raw.told.slice(before).some(([, answered, , name]) => answered === mine && name === "phx_reply"), `an answer to ${event}`)
    return raw.told.slice(before).find(([, answered, , name]) => answered === mine && name === "phx_reply")[4]
  }
  return raw
}
