// Puts the page together: cards, controls, main chart, leaderboard, comparison, tabs; everything follows the state.
(function (m) {
  "use strict";
  const root = document.documentElement;
  const $ = (selector) => document.querySelector(selector);
  const S = m.state;
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) {
      if (k === "text") node.textContent = v;
      else if (v !== null && v !== undefined && v !== false) node.setAttribute(k, v === true ? "" : v);
    }
    node.append(...children);
    return node;
  }

  // --- controls --------------------------------------------------------------------------------------------------
  function select(id, label, options, value, change) {
    const input = el("select", { id: id });
    for (const [v, text] of options) input.append(el("option", { value: v, text: text, selected: String(v) === String(value) }));
    input.addEventListener("change", () => { change(input.value); update(); });
    return el("label", { class: "control" }, el("span", { text: label }), input);
  }
  function facetControl(column) {
    const values = S.sorted(S.distinct(column.name));
    const own = () => S.now.facets[column.name] || [];
    const summary = el("summary", {}, el("span", { text: column.label }), el("b", { class: "count" }));
    const box = el("details", { class: "facet", "data-facet": column.name }, summary);
    const list = el("fieldset", {}, el("legend", { class: "quiet", text: column.label }));
    for (const value of values) {
      const input = el("input", { type: "checkbox", value: String(value) });
      input.addEventListener("change", () => {
        const kept = own().filter((v) => v !== value);
        S.now.facets[column.name] = input.checked ? kept.concat([value]) : kept;
        update();
      });
      list.append(el("label", {}, input, el("span", { text: " " + m.shown(column, value) })));
    }
    box.append(list);
    box.addEventListener("keydown", (e) => { if (e.key === "Escape") { box.open = false; summary.focus(); } });
    return box;
  }
  function rangeControl(range) {
    const input = el("input", { type: "number", min: "0", step: "any", id: "range-" + range.key, inputmode: "decimal" });
    input.addEventListener("input", () => {
      if (input.value === "") delete S.now.ranges[range.key];
      else S.now.ranges[range.key] = input.value;
      update();
    });
    return el("label", { class: "control range" }, el("span", { text: range.label }), input, el("span", { class: "unit", text: range.unit }));
  }
  function buildControls() {
    const bar = $("#controls");
    const now = S.now;
    const row = el("div", { class: "row" });
    if (S.datasets.length > 1) {
      row.append(select("dataset", "dataset", S.datasets.map((d) => [d, d]).concat([["", "all"]]), now.dataset, (v) => { S.now.dataset = v; }));
    }
    S.facets.forEach((c) => row.append(facetControl(c)));
    S.ranges.forEach((r) => row.append(rangeControl(r)));
    if (S.batches.length > 1) {
      const options = [["fastest", "fastest"], ["slo", "fastest within TPOT"], ["all", "all"]].concat(S.batches.map((b) => [b, String(b)]));
      row.append(select("batch", "batch size", options, now.batch, (v) => { S.now.batch = v; }));
    }
    if (S.costs.length > 1) row.append(select("cost", "cost", S.costs.map((c) => [c, m.page.costs[c]]), now.cost, (v) => { S.now.cost = v; }));
    const names = S.distinct("deployment");
    if (names.length > 1) row.append(select("reference", "reference", names.map((d) => [d, d]), now.reference, (v) => { S.now.reference = v; }));
    const reset = el("button", { type: "button", id: "reset", text: "Reset" });
    reset.addEventListener("click", () => { S.reset(); update(); });
    row.append(el("output", { id: "count", "aria-live": "polite" }), reset);
    bar.replaceChildren(row);
    const more = el("button", { type: "button", id: "fold", "aria-expanded": "true", "aria-controls": "controls", text: "Filters" });
    more.addEventListener("click", () => {
      const open = bar.classList.toggle("folded");
      more.setAttribute("aria-expanded", String(!open));
    });
    $("#bar").prepend(more);
    if (window.innerWidth < 700) more.click();
    document.addEventListener("click", (e) => {
      document.querySelectorAll("details.facet[open]").forEach((d) => { if (!d.contains(e.target)) d.open = false; });
    });

    const axes = $("#axes");
    const figures = S.figures.map((f) => [f, m.page.figures[f].label]);
    const by = [["", "automatic"], ["accuracy", "accuracy"]].concat(S.facets.map((c) => [c.name, c.label]), [["deployment", "deployment"]]);
    axes.replaceChildren(
      select("axis-y", "up", figures, now.y, (v) => { S.now.y = v; }),
      select("axis-x", "across", figures, now.x, (v) => { S.now.x = v; }),
      select("by", "colour", by, now.by, (v) => { S.now.by = v; }),
      toggle("frontier", "frontier"), toggle("intervals", "intervals"));
  }
  function toggle(key, label) {
    const input = el("input", { type: "checkbox", id: "show-" + key });
    input.addEventListener("change", () => { S.now[key] = input.checked; update(); });
    return el("label", { class: "control" }, input, el("span", { text: " " + label }));
  }
  // What the state says, into the controls.
  function showState() {
    const now = S.now;
    const set = (id, value) => { const input = document.getElementById(id); if (input) input.value = value; };
    for (const [id, value] of [["dataset", now.dataset], ["batch", now.batch], ["cost", now.cost], ["reference", now.reference], ["axis-x", now.x], ["axis-y", now.y], ["by", now.by]]) set(id, value);
    S.ranges.forEach((r) => { const input = $("#range-" + r.key); if (document.activeElement !== input) input.value = now.ranges[r.key] ?? ""; });
    for (const key of ["frontier", "intervals"]) $("#show-" + key).checked = now[key];
    document.querySelectorAll("details.facet").forEach((box) => {
      const values = now.facets[box.dataset.facet] || [];
      box.querySelectorAll("input").forEach((input) => { input.checked = values.some((v) => String(v) === input.value); });
      box.querySelector(".count").textContent = values.length ? " " + values.length : "";
    });
  }

  // --- cards -------------------------------------------------------------------------------------------------------
  function buildCards(points) {
    const dataset = S.now.dataset || m.page.dataset;
    const rows = points.filter((r) => r.dataset === dataset);
    const cards = S.now.cost ? m.answers.cards(rows, S.now.cost, S.limit("tpot"), S.limit("ttft")) : [];
    $("#answer-of").textContent = dataset ? "On " + dataset + ", " + points.length + " of " + m.rows.length + " points." : "";
    $("#cards").replaceChildren(...cards.map((c) => {
      const names = el("p", { class: "name", text: c.text });
      const pick = el("button", { type: "button", class: "quiet-button", text: "compare", "aria-label": "compare " + c.text });
      pick.addEventListener("click", () => { S.now.picked = Array.from(new Set(c.rows.slice(0, 4).map((r) => r._id).concat(S.now.picked))).slice(0, 4); update(); });
      return el("article", { class: "card" + (c.names.length > 1 ? " tie" : "") }, el("h3", { text: c.title }), names, el("p", { class: "detail-line", text: c.detail }), pick);
    }));
    $("#advice").textContent = (S.now.cost && m.answers.advice(rows, S.now.cost)) || (cards.length ? "" : "No point is left that has these figures: widen a filter, or reset.");
  }

  // --- leaderboard -------------------------------------------------------------------------------------------------
  let board = null;
  const open = new Set();
  function boardColumns() {
    const names = S.now.columns || m.tables.telling(m.tables.MAIN);
    return m.tables.present(["deployment"].concat(names.filter((n) => n !== "deployment")));
  }
  const PICK = {
    title: "", field: "_id", width: 66, frozen: true, headerSort: false, resizable: false,
    titleFormatter() { return el("span", { class: "quiet", text: "compare and unfold" }); },
    formatter(cell) {
      const id = cell.getValue();
      const name = cell.getRow().getData().deployment;
      const box = el("input", { type: "checkbox", "aria-label": "compare " + name });
      box.checked = S.now.picked.includes(id);
      box.addEventListener("change", () => pick(id, box.checked));
      const more = el("button", { type: "button", class: "more", "aria-expanded": String(open.has(id)), "aria-label": "all figures of " + name, text: open.has(id) ? "▾" : "▸" });
      more.addEventListener("click", () => {
        if (open.has(id)) open.delete(id); else open.add(id);
        cell.getRow().reformat();
        document.querySelector('.tabulator-row [aria-label="all figures of ' + CSS.escape(name) + '"]')?.focus();
      });
      return el("span", {}, box, more);
    },
  };
  function unfold(row) {
    const element = row.getElement();
    const id = row.getData()._id;
    element.classList.toggle("picked", S.now.picked.includes(id));
    element.querySelector(":scope > .detail")?.remove();
    if (open.has(id)) element.append(m.tables.detail(row.getData()));
  }
  function buildBoard(rows) {
    const columns = boardColumns();
    const [field, dir] = (S.now.sort || S.now.cost + "!asc").split("!");
    const sort = m.columns.has(field) && columns.some((c) => c.name === field) ? [{ column: field, dir: dir === "desc" ? "desc" : "asc" }] : [];
    board = m.tables.make($("#board"), columns, rows, { before: [PICK], rowFormatter: unfold, label: "leaderboard", sort: sort });
    board.on("dataSorted", (sorters) => {
      const now = sorters.length ? sorters[0].field + "!" + sorters[0].dir : "";
      const next = now === S.now.cost + "!asc" ? "" : now;
      if (next !== S.now.sort) { S.now.sort = next; keep(); }
    });
    board.on("dataFiltered", (filters, found) => { $("#board-count").textContent = found.length + " of " + m.rows.length + " rows"; });
  }
  const alone = new Map();
  function buildChooser() {
    const chooser = $("#chooser");
    const shown = new Set(boardColumns().map((c) => c.name));
    const sections = new Map();
    for (const c of m.columns.values()) {
      if (!sections.has(c.section)) sections.set(c.section, []);
      sections.get(c.section).push(c);
    }
    chooser.replaceChildren(...Array.from(sections, ([title, columns]) => {
      const set = el("fieldset", {}, el("legend", { text: title }));
      for (const c of columns) {
        const input = el("input", { type: "checkbox", value: c.name, disabled: c.name === "deployment" });
        input.checked = shown.has(c.name);
        input.addEventListener("change", () => {
          const now = new Set(boardColumns().map((d) => d.name));
          if (input.checked) now.add(c.name); else now.delete(c.name);
          S.now.columns = Array.from(m.columns.keys()).filter((n) => now.has(n));
          rebuild();
          keep();
        });
        set.append(el("label", { title: c.meaning }, input, el("span", { text: " " + c.label })));
      }
      return set;
    }));
  }
  function rebuild() {
    board.destroy();
    buildBoard(S.chosen(S.points()));
  }
  function download(kind) {
    const rows = board.getRows("active").map((r) => r.getData());
    const text = m.tables.texts(boardColumns(), rows)[kind]();
    m.tables.save(text, "leaderboard." + kind, { csv: "text/csv", json: "application/json", md: "text/markdown" }[kind]);
  }
  function pick(id, on) {
    const others = S.now.picked.filter((i) => i !== id);
    S.now.picked = on ? others.concat([id]).slice(-4) : others;
    update();
  }
  function pickPoint(id) {
    pick(id, !S.now.picked.includes(id));
    if (!board.getRows().some((row) => row.getIndex() === id)) return; // another batch size of a deployment whose row stands for its fastest
    board.scrollToRow(id, "center", false).catch(() => undefined);
  }

  // --- tabs ---------------------------------------------------------------------------------------------------------
  const tabs = Array.from(document.querySelectorAll("main > section.tab"));
  function buildTabs() {
    const list = $("#tabs");
    for (const section of tabs) {
      const button = el("button", { type: "button", role: "tab", id: "tab-" + section.id, "aria-controls": section.id, text: section.dataset.title });
      button.addEventListener("click", () => { S.now.tab = section.id; update(); });
      list.append(button);
      section.setAttribute("role", "tabpanel");
      section.setAttribute("aria-labelledby", button.id);
      section.tabIndex = 0;
    }
    list.addEventListener("keydown", (e) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
      if (!step) return;
      const at = tabs.findIndex((s) => s.id === (S.now.tab || tabs[0].id));
      const next = tabs[(at + step + tabs.length) % tabs.length];
      S.now.tab = next.id;
      update();
      $("#tab-" + next.id).focus();
    });
  }
  const SECTIONS = { performance: ["Performance"], utilization: ["Utilization", "Bytes"], cost: ["Cost", "Energy"] };
  function showTab(points) {
    const now = tabs.find((s) => s.id === S.now.tab) || tabs[0];
    for (const section of tabs) {
      const on = section === now;
      section.hidden = !on;
      if (!on) section.querySelectorAll("figure").forEach(m.charts.forget);
      const button = $("#tab-" + section.id);
      button.setAttribute("aria-selected", String(on));
      button.tabIndex = on ? 0 : -1;
    }
    const jobs = Array.from(now.querySelectorAll("figure[data-chart]"), (f) => m.charts.standard(f, f.dataset.chart, points));
    const place = now.querySelector(".points");
    if (place) {
      const names = m.tables.telling(["deployment", "dataset", "batch_size"]);
      const own = Array.from(m.columns.values()).filter((c) => SECTIONS[now.id].includes(c.section));
      const rows = now.id === "cost" ? recosted(points) : points;
      alone.get(now.id)?.destroy();
      alone.set(now.id, m.tables.make(place, m.tables.present(names).concat(own), rows, { label: now.dataset.title + " of every point" }));
    }
    if (now.id === "routing") jobs.push(showRouting());
    return Promise.all(jobs);
  }

  // --- cost with other terms ----------------------------------------------------------------------------------------
  const TERMS = [["usd_per_kwh", "electricity, $/kWh"], ["years", "lifetime, years"], ["pue", "PUE"], ["utilisation", "share of the life under load"]];
  function given() {
    const found = {};
    for (const [key] of TERMS) {
      const value = $("#term-" + key)?.value;
      if (value !== undefined && value !== "") found[key] = Number(value);
    }
    return found;
  }
  function recosted(points) {
    const changed = given();
    if (!Object.keys(changed).length) { $("#recost-note").textContent = "As the table has it."; return points; }
    let count = 0;
    const rows = points.map((r) => {
      const next = m.cost.recost(r, changed);
      if (!next) return r;
      count += 1;
      const row = { ...r };
      for (const c of Array.from(m.columns.values())) {
        if (c.section === "Cost" && !["hardware_usd", "hardware_usd_low", "hardware_usd_high"].includes(c.name) && c.form !== "text") {
          for (const end of ["", "_low", "_high"]) delete row[c.name + end]; // what is not computed anew is not shown
        }
      }
      return Object.assign(row, next, { tokens_per_usd: 1e6 / next.usd_per_million_tokens, lifetime_years: changed.years ?? r.lifetime_years, usd_per_kwh: changed.usd_per_kwh ?? r.usd_per_kwh,
        pue: changed.pue ?? r.pue, utilisation: changed.utilisation ?? r.utilisation });
    });
    $("#recost-note").textContent = count + " of " + points.length + " points computed anew by equations (6) and (7), without intervals; the mean power over the life is the table's.";
    return rows;
  }
  function buildTerms() {
    const place = $("#terms");
    if (!place) return;
    for (const [key, label] of TERMS) {
      const usual = m.rows.map((r) => m.cost.terms(r)[key]).find((v) => v !== undefined);
      const input = el("input", { type: "number", id: "term-" + key, min: "0", step: "any", placeholder: usual === undefined ? "" : String(usual) });
      input.addEventListener("input", () => showTab(S.points()));
      place.append(el("label", { class: "control" }, el("span", { text: label }), input));
    }
    const back = el("button", { type: "button", text: "As measured" });
    back.addEventListener("click", () => { TERMS.forEach(([key]) => { $("#term-" + key).value = ""; }); showTab(S.points()); });
    place.append(back);
  }

  // --- routing -------------------------------------------------------------------------------------------------------
  function rowsOf(columns) {
    const names = Object.keys(columns);
    return names.length ? columns[names[0]].map((_, i) => Object.fromEntries(names.map((n) => [n, columns[n][i]]))) : [];
  }
  function buildRouting() {
    const place = $("#routing-pick");
    const names = Object.keys(m.page.routing);
    if (!place || !names.length) return;
    const input = el("select", { id: "routing-of" }, ...names.map((n) => el("option", { value: n, text: n })));
    input.addEventListener("change", showRouting);
    place.append(el("label", { class: "control" }, el("span", { text: "deployment" }), input));
  }
  async function showRouting() {
    const name = $("#routing-of")?.value;
    if (!name) return;
    for (const [chart, found] of Object.entries(m.page.routing[name])) {
      const figure = $("#figure-" + chart);
      const spec = m.charts.copy(found.spec);
      spec.datasets = Object.fromEntries(Object.entries(found.data).map(([k, v]) => [k, rowsOf(v)]));
      if (chart !== "experts") m.charts.fit(spec, figure.clientWidth, () => 2);
      await m.charts.draw(figure, spec, found.caption + " " + name);
    }
  }

  // --- all of it -----------------------------------------------------------------------------------------------------
  let quiet = false;
  function keep() {
    const hash = S.toHash();
    quiet = true;
    history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
    quiet = false;
  }
  let turn = 0;
  async function update() {
    turn += 1;
    const own = turn;
    const points = S.points();
    const rows = S.chosen(points);
    $("#count").textContent = points.length + " of " + m.rows.length + " points";
    showState();
    buildCards(points);
    if (!board) buildBoard(rows); else board.replaceData(rows);
    keep();
    root.dataset.charts = "drawing";
    const jobs = [m.charts.main($("#main-chart"), points, pickPoint), m.compare.show(rows, points), showTab(points)];
    for (const done of await Promise.allSettled(jobs)) if (done.status === "rejected") console.error(String(done.reason));
    if (own === turn) root.dataset.charts = "drawn"; // else a later one is still at it
  }

  S.fromHash(location.hash);
  root.classList.add("app");
  buildControls();
  buildTabs();
  buildTerms();
  buildRouting();
  $("#choose").addEventListener("toggle", () => { if ($("#choose").open) buildChooser(); });
  document.querySelectorAll("[data-download]").forEach((b) => b.addEventListener("click", () => download(b.dataset.download)));
  window.addEventListener("hashchange", () => { if (!quiet) { S.fromHash(location.hash); update(); } });
  m.charts.dark.addEventListener("change", update);
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; clearTimeout(update.later); update.later = setTimeout(update, 200); } });
  m.update = update;
  m.pick = pick;
  update();
})(window.moecap);
