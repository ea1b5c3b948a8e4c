// Draws every chart of the page from the JSON beside it, again when the page turns dark or light. Until then, without
// JavaScript, and on paper, the still image stands in its place.
(function () {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const themes = JSON.parse(document.getElementById("chart-themes").textContent);
  const drawn = new Map();
  async function draw(figure) {
    const spec = JSON.parse(document.getElementById(figure.dataset.spec).textContent);
    spec.config = dark.matches ? themes.dark : themes.light;
    const old = drawn.get(figure);
    if (old) old.finalize();
    // ast: expressions are interpreted, because the page's policy forbids eval.
    const actions = { export: true, source: false, compiled: false, editor: false };
    const options = { mode: "vega-lite", renderer: "svg", ast: true, actions: actions, theme: undefined };
    drawn.set(figure, await window.vegaEmbed(figure.querySelector(".live"), spec, options));
    const words = figure.querySelector("img").alt;
    const svg = figure.querySelector(".live svg");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", words);
    figure.querySelector(".live summary").setAttribute("aria-label", "Save the chart: " + words);
    for (const input of figure.querySelectorAll(".vega-bind select")) input.setAttribute("aria-label", "choose what is drawn");
    figure.classList.add("drawn");
  }
  async function drawAll() {
    for (const figure of document.querySelectorAll("figure[data-spec]")) {
      try {
        await draw(figure);
      } catch (error) {
        console.error("chart " + figure.dataset.spec + ": " + error);
      }
    }
    document.documentElement.dataset.charts = "drawn";
  }
  // One after the other: of two at once in the same place the older might come to lie on top.
  let running = drawAll();
  dark.addEventListener("change", () => { running = running.then(drawAll); });
})();
