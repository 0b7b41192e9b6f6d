// A crowd in a process of its own, so that it can vanish all at once: `node crowd.mjs PORT SOCKETS CHANNELS`
// opens so many sockets, joins each to one of so many channels, prints "joined N" and stays until it is
// killed. It does as little as a client can.

import net from "node:net"

const [port, sockets, channels] = process.argv.slice(2).map(Number)
/** Handshakes under way at the same time. */
const AT_ONCE = 100
/** Sockets from one address: there are only so many ports. */
const A_SOURCE = 20_000

const upgrade =
  "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

/** A text frame of a client, its mask all zero. */
function frame(text) {
  const payload = Buffer.from(text)
  const length = payload.length < 126 ? [0x80 | payload.length] : [0x80 | 126, payload.length >> 8, payload.length & 255]
  return Buffer.concat([Buffer.from([0x81, ...length, 0, 0, 0, 0]), payload])
}

const join = (index) =>
  new Promise((resolve, reject) => {
    const localAddress = `127.0.0.${1 + Math.floor(index / A_SOURCE)}`
    const socket = net.connect({ host: "127.0.0.1", port, localAddress })
    let heard = ""
    let upgraded = false
    socket.on("error", reject)
    socket.on("connect", () => socket.write(upgrade))
    const listen = (data) => {
      heard += data.toString("latin1")
      if (!upgraded && heard.includes("\r\n\r\n")) {
        if (!heard.startsWith("HTTP/1.1 101")) return reject(new Error(heard.split("\r\n")[0]))
        upgraded = true
        const message = ["1", "1", `crowd:${index % channels}`, "phx_join", { user_id: `crowd-${index}` }]
        socket.write(frame(JSON.stringify(message)))
      }
      if (heard.includes("phx_reply")) {
        socket.off("data", listen)
        socket.resume()
        resolve()
      }
    }
    socket.on("data", listen)
  })

let next = 0
const worker = async () => {
  while (next < sockets) await join(next++)
}
await Promise.all(Array.from({ length: AT_ONCE }, worker))
console.log(`joined ${sockets}`)
setInterval(() => {}, 1 << 30)
