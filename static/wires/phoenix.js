/** Phoenix Channels, version 2: what rollcall.js speaks by itself. A wire for another protocol translates to it. */

/** The address of a WebSocket on this server. */
export function address(path, query) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = new URLSearchParams(query);
  return url;
}

/**
 * Opens a connection. `on` is told of it: `open()`, `message([join_ref, ref, topic, event, payload])`, `close(code)`.
 * What comes back can `send` such a message, and `close`.
 */
export function phoenix(query, on) {
  const socket = new WebSocket(address("/socket/websocket", { ...query, vsn: "2.0.0" }));
  socket.onopen = () => on.open();
  socket.onmessage = ({ data }) => on.message(JSON.parse(data));
  socket.onclose = ({ code }) => on.close(code);
  return { send: (message) => socket.send(JSON.stringify(message)), close: () => socket.close() };
}
