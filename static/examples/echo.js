import Echo from "laravel-echo";
import Pusher from "pusher-js";

const echo = new Echo({
  broadcaster: "reverb", Pusher, key: "demo-key",
  wsHost: "localhost", wsPort: 8000, forceTLS: false, enabledTransports: ["ws"],
  authEndpoint: "http://localhost:8000/pusher/auth",
  auth: { params: { user_id: "edsger", user_info: '{"name":"Edsger"}' } },
});
const room = echo.join("lobby");
room.here((people) => console.log("here:", people.map(({ name }) => name)));
room.joining(({ name }) => console.log(name, "came in")).leaving(({ name }) => console.log(name, "left"));
room.listenForWhisper("wave", ({ name }) => console.log(name, "waves"));
room.here(() => room.whisper("wave", { name: "Edsger" }));
