/** Light or dark: as the system says, or as the button was last used to say otherwise. */

import { recall, remember } from "./storage.js";

const button = document.getElementById("theme");
const night = matchMedia("(prefers-color-scheme: dark)");
let theme = recall(localStorage, "theme");

function show() {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  button.ariaPressed = String(theme ? theme === "dark" : night.matches);
}

button.onclick = () => {
  const next = button.ariaPressed === "true" ? "light" : "dark";
  theme = (next === "dark") === night.matches ? null : next; // What the system says anyway is no preference.
  remember(localStorage, "theme", theme);
  show();
};
night.onchange = show;
show();
