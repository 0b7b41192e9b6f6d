/* The examples, as they are served: what is shown here is what the tests run. */

import "../theme.js";

for (const box of document.querySelectorAll("[data-file]")) {
  const answer = await fetch(box.dataset.file);
  if (answer.ok) box.textContent = (await answer.text()).trimEnd();
}
