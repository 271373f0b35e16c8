// Draws every [data-chart] of a page with plotly.js. The page's script comes after this and defines `charts`:
// {name: (run) => [traces, layout]}. Model text never reaches plotly.js.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const dashes = ["solid", "dash", "dot", "dashdot", "longdash"];
const system = matchMedia("(prefers-color-scheme: dark)");

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
}

function colour(agent) {
  const palette = dark()
    ? ["#7cbcf0", "#f2a65a", "#67d0a0", "#dba0e8", "#e8d36a", "#f39a8f", "#9fb4c8", "#8fd8e0"]
    : ["#0b5a8f", "#b5510b", "#0b7a52", "#8a3d99", "#857000", "#a12f2f", "#54677a", "#107a86"];
  return palette[agent % palette.length];
}

// plotly.js interprets <b>, <a> and entities; card names come from files, so those characters are replaced.
function label(text) {
  return text.replace(/</g, "‹").replace(/>/g, "›").replace(/&/g, "＆").replace(/[${}%]/g, "_").slice(0, 60);
}

function draw(box) {
  const article = box.closest("[data-run]");
  const [traces, special] = charts[box.dataset.chart](article && data.runs[article.dataset.run]);
  const text = getComputedStyle(document.body).color;
  const grid = dark() ? "#363b42" : "#e4e0d9";
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, fixedrange: true };
  const small = box.classList.contains("small");
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, family: "system-ui, sans-serif" },
    margin: { l: 50, r: 12, t: 36, b: 40 }, hovermode: "x unified", hoverdistance: -1,
    showlegend: !(box.dataset.chart === "heat"),
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: small ? 11 : 13 } },
    hoverlabel: { bgcolor: dark() ? "#1d2024" : "#ffffff", font: { color: text } },
    ...special,
    xaxis: { ...axis, ...(small ? { title: { text: "update", font: { size: 12 } } } : {}), ...special.xaxis },
    yaxis: { ...axis, ...special.yaxis },
  };
  Plotly.react(box, traces, layout, { displayModeBar: false, responsive: true });
}

const drawn = new Set();
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    drawn.add(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "200px" });
// plotly.js is embedded as text and starts after the first paint: it takes longer to start than everything else.
addEventListener("load", () => requestAnimationFrame(() => setTimeout(() => {
  const plotly = document.createElement("script");
  plotly.textContent = document.getElementById("plotly").textContent;
  document.head.append(plotly);
  document.querySelectorAll("[data-chart]").forEach((box) => seen.observe(box));
})));
system.addEventListener("change", () => drawn.forEach(draw));
document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  drawn.forEach(draw);
});
