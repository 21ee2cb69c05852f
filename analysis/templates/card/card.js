"use strict";
const page = JSON.parse(document.getElementById("figure-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw(isDark) {
  for (const [id, figure] of Object.entries(page.figures))
    Plotly.react(id, figure.data, {...figure.layout, template: isDark ? page.dark : page.light},
      {responsive: true, displayModeBar: false});
}
draw(dark.matches);
dark.addEventListener("change", () => draw(dark.matches));
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  draw(false);
});
addEventListener("afterprint", () => draw(dark.matches));
