// Charts over the page's rows: the specifications are those of moecap/charts, the rows are what the filters leave.
(function (m) {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const live = new Map(); // element → { view, turn }: a drawing that a later one overtook is dropped
  function claim(figure) {
    const own = live.get(figure) || { view: null, turn: 0 };
    own.turn += 1;
    live.set(figure, own);
    return own.turn;
  }
  function put(figure, view, ...nodes) {
    const own = live.get(figure);
    own.view?.finalize();
    own.view = view;
    figure.querySelector(".live").replaceChildren(...nodes);
    figure.classList.toggle("drawn", view !== null);
  }

  const copy = (value) => JSON.parse(JSON.stringify(value));
  function visit(part, change) {
    if (Array.isArray(part)) part.forEach((p) => visit(p, change));
    else if (part && typeof part === "object") {
      change(part);
      Object.values(part).forEach((p) => visit(p, change));
    }
  }

  // Colours and shapes of names: fixed by the names that are drawn.
  function series(spec, field, names) {
    visit(spec, (part) => {
      if (part.field !== field || !part.scale || !part.scale.range) return;
      const range = part.scale.range[0] && part.scale.range[0].startsWith("#") ? m.page.colours : m.page.shapes;
      part.scale = { domain: names, range: range.slice(0, names.length) };
    });
  }

  // As many panels beside one another as there is room for, each as wide as that leaves it.
  function fit(spec, width, panels) {
    visit(spec, (part) => {
      if (part.facet && part.spec) {
        const wide = part.spec.width || 300;
        const least = wide < 300 ? 200 : 280;
        const columns = Math.max(1, Math.min(panels(part.facet.field), part.columns || 3, Math.floor(width / (least + 70))));
        part.columns = columns;
        const most = columns === 1 ? 1240 : 560;
        part.spec.width = Math.max(160, Math.min(most, Math.floor((width - 40) / columns) - 72));
        if (columns === 1 && part.spec.width > 500) part.spec.height = Math.max(part.spec.height || 0, 340);
      }
    });
  }

  async function draw(figure, spec, label) {
    const turn = claim(figure);
    const theme = copy(dark.matches ? m.themes.dark : m.themes.light);
    if (figure.clientWidth < 560) theme.legend.columns = 1;
    spec.config = theme;
    if (spec.title) spec.title.limit = 0;
    const holder = document.createElement("div");
    holder.className = "chart";
    // ast: expressions are interpreted, because the page's policy forbids eval.
    const result = await window.vegaEmbed(holder, spec, {
      mode: "vega-lite", renderer: spec.usermeta?.renderer || "svg", ast: true, theme: undefined,
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: figure.id,
    });
    if (live.get(figure).turn !== turn) { result.finalize(); return null; }
    put(figure, result, holder);
    const svg = holder.querySelector("svg");
    if (svg) { // one image with one text: its marks are not read out one by one
      svg.querySelectorAll("[role]").forEach((mark) => { mark.removeAttribute("role"); mark.removeAttribute("aria-roledescription"); mark.removeAttribute("aria-label"); });
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", label);
    }
    const menu = holder.querySelector("summary");
    if (menu) { menu.setAttribute("aria-label", "Save the chart: " + label); menu.title = "save"; }
    holder.querySelectorAll("canvas").forEach((c) => { c.setAttribute("role", "img"); c.setAttribute("aria-label", label); });
    return result.view;
  }

  // The deployments that a chart of few colours shows: those picked, then the most often on the frontier, the fastest.
  function few(rows) {
    const best = new Map();
    for (const r of rows) {
      const rank = [m.state.now.picked.includes(r._id) ? 1 : 0, r.pareto_frequency || 0, r.output_tokens_per_s || 0];
      const other = best.get(r.deployment);
      if (!other || rank.some((v, i) => v > other[i] && rank.slice(0, i).every((w, j) => w === other[j]))) best.set(r.deployment, rank);
    }
    const order = Array.from(best.keys()).sort((a, b) => {
      const [x, y] = [best.get(a), best.get(b)];
      const i = x.findIndex((v, k) => v !== y[k]);
      return i < 0 ? 0 : y[i] - x[i];
    });
    const kept = new Set(order.slice(0, m.page.most_series));
    return Array.from(best.keys()).filter((name) => kept.has(name));
  }
  function told(names, total) {
    return total > names.length
      ? names.length + " of " + total + " deployments are drawn: those picked, then those most often on the Pareto frontier." : "";
  }

  // Layers that no row has data for go: their scales would have no extent.
  function prune(spec, datasets) {
    const some = (name) => datasets.rows.some((r) => r[name] !== undefined && r[name] !== null);
    visit(spec, (part) => {
      if (!Array.isArray(part.layer)) return;
      part.layer = part.layer.filter((layer) => {
        if (layer.data && datasets[layer.data.name] && !datasets[layer.data.name].length) return false;
        const steps = layer.transform || [];
        const fold = (steps.find((t) => t.fold) || {}).fold || [];
        return steps.every((t) => {
          const valid = typeof t.filter === "string" && t.filter.match(/^isValid\(datum\.(\w+)\)$/);
          if (!valid) return true;
          if (valid[1] === "value") return fold.some(some);
          return valid[1] === "low" && fold.length ? fold.some((name) => some(name + "_low")) : some(valid[1]);
        });
      });
    });
    if (Array.isArray(spec.vconcat)) spec.vconcat = spec.vconcat.filter((part) => !part.spec || !part.spec.layer || part.spec.layer.length);
  }

  // A default chart over rows: "rows" is the name that its specification gives them.
  async function standard(figure, name, rows) {
    const spec = copy(m.page.charts[name]);
    const names = few(rows);
    const drawn = rows.filter((r) => names.includes(r.deployment) && r.batch_size);
    const total = new Set(rows.map((r) => r.deployment)).size;
    const one = ["utilization", "bytes-per-layer"].includes(name); // one dataset: a panel per deployment
    const kept = one ? drawn.filter((r) => r.dataset === drawn[0].dataset) : drawn;
    const note = figure.querySelector(".which");
    if (note) note.textContent = [told(names, total), one && kept.length ? "Dataset: " + kept[0].dataset + "." : ""].join(" ").trim();
    if (!kept.length) { empty(figure, "No point to draw: none of those that the filters leave has these figures."); return; }
    series(spec, "deployment", names);
    spec.title.subtitle = [];
    const above = kept.some((r) => ["mbu", "s_mbu", "mfu", "s_mfu"].some((u) => r["decode_" + u] > 1));
    spec.datasets = { rows: kept.map((r) => ({ ...r })), one: above ? [{ one: 1 }] : [] };
    prune(spec, spec.datasets);
    fit(spec, figure.clientWidth, (field) => new Set(kept.map((r) => r[field])).size);
    await draw(figure, spec, figure.dataset.label);
  }
  function empty(figure, words) {
    const p = document.createElement("p");
    p.className = "muted";
    p.textContent = words;
    claim(figure);
    put(figure, null, p);
  }
  // A chart that is out of sight would keep the colours, the rows and the width of a former time.
  function forget(figure) {
    if (!live.has(figure)) return;
    claim(figure);
    put(figure, null);
  }

  const MANY = 1500; // points, from which a canvas is quicker than an element each
  // --- the main chart ------------------------------------------------------------------------------------------
  function finest(rows) {
    const columns = ["deployment", "precision", "engine", "hardware", "model", "status"];
    return columns.find((c) => { const n = m.state.distinct(c, rows).length; return n > 0 && n <= m.page.most_series; }) || "status";
  }
  function staircase(points, x, y) {
    const better = (figure, a, b) => (figure.more_is_better ? a >= b : a <= b);
    const sorted = points.slice().sort((a, b) => (x.more_is_better ? b.x - a.x : a.x - b.x) || (y.more_is_better ? b.y - a.y : a.y - b.y));
    let best = null;
    for (const p of sorted) {
      p.staircase = best === null || (p.y !== best && better(y, p.y, best));
      if (p.staircase) best = p.y;
    }
  }
  async function main(figure, rows, onPick) {
    const state = m.state.now;
    const [x, y] = [m.page.figures[state.x], m.page.figures[state.y]];
    const column = state.by && state.by !== "accuracy" ? state.by : finest(rows);
    const names = m.state.sorted(m.state.distinct(column, rows).map(String));
    const kept = names.slice(0, m.page.most_series);
    const points = [];
    for (const r of rows) {
      const [vx, vy] = [m.figureOf(r, x), m.figureOf(r, y)];
      if (vx[0] === null || vy[0] === null) continue;
      const name = String(r[column]);
      points.push({
        id: r._id, x: vx[0], x_low: vx[1], x_high: vx[2], y: vy[0], y_low: vy[1], y_high: vy[2],
        deployment: r.deployment, dataset: r.dataset, batch_size: r.batch_size ?? null, accuracy: r.accuracy ?? null,
        accuracy_stderr: r.accuracy_stderr ?? null, series: kept.includes(name) ? name : "others",
        frontier: state.picked.includes(r._id), label: "",
      });
    }
    const note = figure.querySelector(".which");
    if (!points.length) {
      note.textContent = "";
      empty(figure, "No point to draw: none of those that the filters leave has both figures.");
      return;
    }
    for (const d of new Set(points.map((p) => p.dataset))) staircase(points.filter((p) => p.dataset === d), x, y);
    const spec = copy(m.page.charts[state.by === "accuracy" ? "throughput-against-cost" : "throughput-per-device-and-user"] ||
      m.page.charts["throughput-against-cost"] || m.page.charts["throughput-per-device-and-user"]);
    if (!spec) return;
    delete spec.title; // the axes are named, and the reader chose them
    const scales = {};
    for (const [axis, figureOfAxis] of [["x", x], ["y", y]]) {
      scales[axis] = {
        title: figureOfAxis.label,
        scale: figureOfAxis.log ? { type: "log", nice: false, padding: 18 } : { type: "linear", nice: false, zero: false, padding: 18 },
        axis: figureOfAxis.percent ? { format: ".0%" } : { format: ",~g", labelOverlap: true, tickCount: 5 },
      };
    }
    visit(spec, (part) => {
      for (const axis of ["x", "y"]) {
        const at = part[axis];
        if (at && typeof at === "object" && typeof at.field === "string" && at.field[0] === axis) Object.assign(at, scales[axis]);
      }
      if (Array.isArray(part.tooltip)) {
        part.tooltip.forEach((t) => { if (t.field === "x") t.title = x.label; if (t.field === "y") t.title = y.label; });
      }
      if (part.field === "series" && part.title !== undefined) part.title = m.columns.get(column)?.label || column;
    });
    series(spec, "series", names.length > kept.length ? kept.slice(0, -1).concat("others") : kept);
    if (names.length > kept.length) points.forEach((p) => { if (p.series === kept[kept.length - 1]) p.series = "others"; });
    const layers = spec.spec.layer;
    spec.spec.layer = layers.filter((layer) => {
      const text = JSON.stringify(layer);
      for (const axis of ["x", "y"]) { // a layer without points would have a scale without an extent
        if (text.includes(axis + "_low") && !(state.intervals && points.some((p) => p[axis + "_low"] !== null))) return false;
      }
      if (text.includes("datum.label")) return false;
      if (text.includes("datum.frontier")) return points.some((p) => p.frontier);
      return state.frontier || !text.includes("datum.staircase");
    });
    spec.datasets = { points: points };
    if (points.length > MANY) spec.usermeta = { renderer: "canvas" };
    const datasets = new Set(points.map((p) => p.dataset)).size;
    fit(spec, figure.clientWidth, () => datasets);
    if (datasets === 1) visit(spec, (part) => { if (part.facet) part.facet.header = { labels: false, title: null }; });
    const others = names.length > kept.length ? " Colours: the first " + (kept.length - 1) + " of " + names.length + " by " + column + "." : "";
    note.textContent = points.length + " of " + rows.length + " points have both figures. Ringed: picked rows. Dashed: the frontier of the two." + others;
    const view = await draw(figure, spec, figure.dataset.label);
    if (view) view.addEventListener("click", (event, item) => {
      if (item && item.datum && item.datum.id !== undefined) onPick(item.datum.id);
    });
  }

  m.charts = { draw, standard, main, fit, series, copy, few, empty, forget, dark };
})(window.moecap);
