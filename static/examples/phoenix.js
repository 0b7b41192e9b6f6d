import { Presence, Socket } from "phoenix";

const socket = new Socket("ws://localhost:8000/socket");
const room = socket.channel("lobby", { user_id: "grace", meta: { name: "Grace" } });
const presence = new Presence(room);
presence.onSync(() => console.log("here:", presence.list((user) => user)));
room.on("broadcast", ({ event, payload }) => event === "wave" && console.log(payload.name, "waves"));
socket.connect();
room.join().receive("ok", () => room.push("broadcast", { event: "wave", payload: { name: "Grace" } }));
