// Shows what the server tells, and says so when it tells nothing. All parts come as escaped HTML.
"use strict";
const line = document.getElementById("line");
const source = new EventSource("stream");
source.addEventListener("parts", (event) => {
  const parts = JSON.parse(event.data);
  for (const [id, html] of Object.entries(parts)) {
    const element = document.getElementById(id);
    if (element && element.innerHTML !== html) {
      element.innerHTML = html;
    }
  }
  line.hidden = true;
});
source.addEventListener("error", () => {
  line.hidden = false;
  if (source.readyState === EventSource.CLOSED) {
    line.textContent = "The monitor refuses this page: open the address that it printed anew.";
  }
});
