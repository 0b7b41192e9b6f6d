// Loaded before an example, which is run as it stands: what it says to localhost:8000 goes to the server under test
// (ROLLCALL_TEST_PORT), and a Node without a WebSocket of its own gets one.

import net from "node:net"
import WebSocket from "ws"

globalThis.WebSocket ??= WebSocket

const { connect } = net.Socket.prototype
net.Socket.prototype.connect = function (...given) {
  const [options] = Array.isArray(given[0]) ? given[0] : given
  if (Number(options?.port) === 8000) Object.assign(options, { host: "127.0.0.1", port: process.env.ROLLCALL_TEST_PORT })
  return connect.apply(this, given)
}
