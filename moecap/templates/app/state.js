// What the reader chose: facets, ranges, which batch size, which cost; kept in the URL's hash, and the rows it leaves.
(function (m) {
  "use strict";
  const distinct = (column, rows = m.rows) =>
    Array.from(new Set(rows.map((r) => r[column]).filter((v) => v !== undefined && v !== null)));
  const sorted = (values) =>
    values.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));

  // Facets: what identifies a deployment, and where its figures come from, while it takes several values.
  const NO_FACET = new Set(["deployment", "dataset", "batch_size", "workload", "engine_version", "source"]);
  const facets = Array.from(m.columns.values()).filter((c) => {
    if (!["Deployment", "Status"].includes(c.section) || !["text", "count"].includes(c.form)) return false;
    if (NO_FACET.has(c.name) || c.name.startsWith("failure") || c.name.startsWith("printed")) return false;
    const n = distinct(c.name).length;
    return n > 1 && n <= 80;
  });
  // Ranges: key in the URL → column, which end is given, factor from what is typed to the column's unit.
  const ranges = [
    { key: "accuracy", column: "accuracy", least: true, label: "accuracy ≥", unit: "%", factor: 0.01 },
    { key: "tpot", column: "tpot_s", least: false, label: "TPOT ≤", unit: "ms", factor: 0.001 },
    { key: "ttft", column: "ttft_s", least: false, label: "TTFT ≤", unit: "ms", factor: 0.001 },
    { key: "usd", column: null, least: false, label: "cost ≤", unit: "$", factor: 1 },
  ].filter((r) => r.column === null || m.columns.has(r.column));
  const costs = Object.keys(m.page.costs).filter((c) => m.columns.has(c));
  const datasets = distinct("dataset");
  const batches = sorted(distinct("batch_size"));
  const figures = Object.keys(m.page.figures).filter((f) => m.rows.some((r) => r[f] !== undefined));
  // The first two that have figures: a printed table has no latency.
  function axes() {
    const wanted = [["tokens_per_s_per_user", "tokens_per_s_per_gpu"], ["usd_per_million_tokens", "output_tokens_per_s"]];
    return wanted.find((pair) => pair.every((f) => figures.includes(f))) || [figures[0], figures[1] || figures[0]];
  }

  function defaults() {
    const [x, y] = axes();
    return {
      facets: {}, ranges: {}, dataset: datasets.length > 1 ? m.page.dataset : "", batch: "fastest", cost: costs[0] || "",
      reference: m.page.reference || "", x: x, y: y, by: "", frontier: true, intervals: true, picked: [],
      tab: "", columns: null, sort: "",
    };
  }
  let state = defaults();

  function toHash() {
    const from = defaults();
    const found = new URLSearchParams();
    for (const [name, values] of Object.entries(state.facets)) for (const v of values) found.append("f." + name, v);
    for (const [key, value] of Object.entries(state.ranges)) found.set("r." + key, value);
    for (const key of ["dataset", "batch", "cost", "reference", "x", "y", "by", "tab", "sort"]) {
      if (state[key] !== from[key]) found.set(key, state[key] === "" ? "all" : state[key]);
    }
    for (const key of ["frontier", "intervals"]) if (!state[key]) found.set(key, "off");
    if (state.picked.length) found.set("picked", state.picked.join("."));
    if (state.columns) found.set("columns", state.columns.join("."));
    return found.toString();
  }

  function fromHash(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    state = defaults();
    for (const [key, value] of given) {
      if (key.startsWith("f.")) {
        const facet = facets.find((c) => c.name === key.slice(2));
        const known = facet && distinct(facet.name).find((v) => String(v) === value);
        if (known !== undefined) (state.facets[facet.name] ||= []).push(known);
      } else if (key.startsWith("r.")) {
        if (ranges.some((r) => r.key === key.slice(2)) && value !== "" && isFinite(value)) state.ranges[key.slice(2)] = value;
      } else if (key === "dataset") state.dataset = datasets.includes(value) ? value : "";
      else if (key === "batch") state.batch = ["fastest", "all", "slo"].includes(value) || batches.includes(Number(value)) ? value : "fastest";
      else if (key === "cost" && costs.includes(value)) state.cost = value;
      else if (key === "reference" && m.rows.some((r) => r.deployment === value)) state.reference = value;
      else if ((key === "x" || key === "y") && figures.includes(value)) state[key] = value;
      else if (key === "frontier" || key === "intervals") state[key] = value !== "off";
      else if (key === "by" && (value === "accuracy" || m.columns.has(value))) state.by = value;
      else if (key === "picked") state.picked = value.split(".").map(Number).filter((i) => m.rows[i]);
      else if (key === "columns") state.columns = value.split(".").filter((c) => m.columns.has(c));
      else if (key === "tab" || key === "sort") state[key] = value;
    }
  }

  const limit = (key) => {
    const range = ranges.find((r) => r.key === key);
    return range && state.ranges[key] !== undefined ? Number(state.ranges[key]) * range.factor : null;
  };

  // The points that facets, ranges and dataset leave: a row that lacks a figure is outside of any range over it.
  function points() {
    return m.rows.filter((r) => {
      if (state.dataset && r.dataset !== state.dataset) return false;
      for (const [name, values] of Object.entries(state.facets)) if (values.length && !values.includes(r[name])) return false;
      for (const range of ranges) {
        const at = limit(range.key);
        const value = r[range.column || state.cost];
        if (at !== null && (value === undefined || (range.least ? value < at : value > at))) return false;
      }
      return true;
    });
  }

  // Of those, one per deployment and dataset (or all): the fastest, or the one at a batch size.
  function chosen(found) {
    if (state.batch === "all") return found;
    if (state.batch !== "fastest" && state.batch !== "slo") return found.filter((r) => String(r.batch_size) === state.batch);
    const tpot = limit("tpot") ?? m.page.tpot_limit_s;
    const best = new Map();
    for (const r of found) {
      if (state.batch === "slo" && !(r.tpot_s <= tpot)) continue;
      const key = r.deployment + "\n" + r.dataset;
      const other = best.get(key);
      if (!other || (r.output_tokens_per_s ?? -1) > (other.output_tokens_per_s ?? -1)) best.set(key, r);
    }
    return Array.from(best.values());
  }

  m.state = {
    get now() { return state; },
    facets, ranges, costs, datasets, batches, figures, distinct, sorted, toHash, fromHash, limit, points, chosen,
    reset() { const tab = state.tab; state = defaults(); state.tab = tab; },
  };
})(window.moecap);
