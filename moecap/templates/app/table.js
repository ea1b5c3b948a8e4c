// Tables of the page's rows (Tabulator): virtual rows, groups of columns, filters, one row unfolded, downloads.
(function (m) {
  "use strict";
  const LEAD = ["deployment", "model", "precision", "engine", "hardware", "devices", "tensor_parallel", "expert_parallel", "dataset", "batch_size"];
  const MAIN = LEAD.concat(["accuracy", "output_tokens_per_s", "tokens_per_s_per_gpu", "tpot_s", "ttft_s", "usd_per_million_tokens",
    "hardware_usd", "joules_per_token", "decode_s_mbu", "cap_class", "pareto_frequency", "status", "origin"]);
  const ends = (row, c) => [row[c.name + "_low"], row[c.name + "_high"]];

  function exact(column, row) {
    const value = row[column.name];
    if (value === undefined) return "not measured";
    const unit = column.unit ? " " + column.unit : "";
    const [low, high] = ends(row, column);
    const interval = column.interval && low !== undefined && high !== undefined ? " [" + low + ", " + high + "]" : "";
    return (Array.isArray(value) ? value.join(", ") : String(value)) + interval + unit;
  }

  // ">= 0.9", "< 5", "1..8", or words that must all be there.
  function passes(text, value, row, params) {
    const column = m.columns.get(params.column);
    if (!text) return true;
    if (m.numeric(column)) {
      const range = text.match(/^\s*(-?[\d.e-]+)\s*\.\.\s*(-?[\d.e-]+)\s*$/i);
      const one = text.match(/^\s*(<=|>=|<|>|=|≤|≥)\s*(-?[\d.e-]+)\s*%?\s*$/i);
      if (value === undefined || value === null) return false;
      const scale = column.form === "share" && /%/.test(text) ? 0.01 : 1;
      if (range) return value >= range[1] && value <= range[2];
      if (one) {
        const at = Number(one[2]) * scale;
        return { "<": value < at, ">": value > at, "<=": value <= at, "≤": value <= at, ">=": value >= at, "≥": value >= at,
          "=": Math.abs(value - at) <= 1e-9 * Math.abs(at) }[one[1]];
      }
    }
    const shown = (m.shown(column, value) + " " + String(value)).toLowerCase();
    return text.toLowerCase().split(/\s+/).filter(Boolean).every((word) => shown.includes(word));
  }

  function definition(c, frozen, filters) {
    const number = m.numeric(c);
    return {
      title: c.label, field: c.name, frozen: frozen, hozAlign: number ? "right" : "left", headerHozAlign: number ? "right" : "left",
      minWidth: frozen ? 130 : 64, maxWidth: frozen ? 260 : 330, headerTooltip: c.meaning + (c.unit ? " Unit: " + c.unit + "." : ""),
      sorter(a, b, rowA, rowB, column, direction) { // what was not measured comes last, whichever way
        const [x, y] = [a, b].map((v) => (v === "" || v === undefined ? null : v)); // Tabulator's "" for undefined
        if (x === null || y === null) return x === y ? 0 : (x === null ? 1 : -1) * (direction === "asc" ? 1 : -1);
        return number ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      },
      titleFormatter() { // a button, so that the keyboard sorts too
        const button = document.createElement("button");
        button.type = "button";
        button.className = "head";
        button.textContent = c.label;
        if (c.unit && !["seconds", "usd", "prefixed"].includes(c.form)) {
          const unit = document.createElement("small");
          unit.textContent = c.unit;
          button.append(" ", unit);
        }
        return button;
      },
      formatter(cell) {
        const row = cell.getRow().getData();
        const text = document.createElement("span");
        text.textContent = m.shown(c, row[c.name]);
        if (row[c.name] === undefined) text.className = "null";
        else if (c.name === "status" || c.name === "origin") text.className = "badge " + row[c.name];
        text.title = exact(c, row);
        if (c.form === "usd" && row.price_status && !["verified", "derived"].includes(row.price_status) && row[c.name] !== undefined) {
          const mark = document.createElement("span");
          mark.className = "mark";
          mark.textContent = "*";
          mark.title = "prices: " + row.price_status;
          const both = document.createElement("span");
          both.append(text, mark);
          return both;
        }
        return text;
      },
      accessorDownload: (value) => (Array.isArray(value) ? value.join(" ") : value),
      ...(filters ? { headerFilter: "input", headerFilterFunc: passes, headerFilterFuncParams: { column: c.name }, headerFilterPlaceholder: number ? "≥ …" : "words",
        headerFilterParams: { elementAttributes: { "aria-label": "filter " + c.label } } } : {}),
    };
  }

  function grouped(columns, filters) {
    const groups = new Map();
    const lead = [];
    columns.forEach((c, i) => {
      if (i === 0) lead.push(definition(c, true, filters));
      else {
        if (!groups.has(c.section)) groups.set(c.section, []);
        groups.get(c.section).push(definition(c, false, filters));
      }
    });
    return lead.concat(Array.from(groups, ([title, list]) => ({ title: title, columns: list })));
  }

  const present = (names) => names.filter((n) => m.columns.has(n)).map((n) => m.columns.get(n));
  // Of the identifying columns those that are not the same everywhere, but always the deployment.
  const telling = (names) => names.filter((n) => n === "deployment" || !LEAD.includes(n) || m.state.distinct(n).length > 1);

  // Everything that is known of a row, section by section, exactly.
  function detail(row) {
    const box = document.createElement("div");
    box.className = "detail";
    const sections = new Map();
    for (const c of m.columns.values()) {
      if (row[c.name] === undefined) continue;
      if (!sections.has(c.section)) sections.set(c.section, []);
      sections.get(c.section).push(c);
    }
    for (const [title, columns] of sections) {
      const part = document.createElement("section");
      const head = document.createElement("h4");
      head.textContent = title;
      const list = document.createElement("dl");
      list.className = "pairs";
      for (const c of columns) {
        const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
        dt.textContent = c.label;
        dt.title = c.meaning;
        if (c.name === "page") {
          const link = document.createElement("a");
          link.href = row.page;
          link.textContent = row.page;
          dd.append(link);
        } else dd.textContent = c.form === "time" ? m.shown(c, row[c.name]) : exact(c, row);
        list.append(dt, dd);
      }
      part.append(head, list);
      box.append(part);
    }
    box.append(...logs(row), ...answers(row));
    return box;
  }
  function titled(text, ...nodes) {
    const part = document.createElement("section");
    const head = document.createElement("h4");
    head.textContent = text;
    part.append(head, ...nodes);
    return part;
  }
  // A row of another campaign (a leaderboard's), or one that nobody timed, has no log beside this page.
  function logs(row) {
    if (row.archive || !["measured", "failed", "estimated"].includes(row.status)) return [];
    const links = Object.entries(m.page.logs).map(([stage, pattern]) => {
      const link = document.createElement("a");
      link.href = pattern.replace("{deployment}", encodeURIComponent(row.deployment));
      link.textContent = stage;
      const line = document.createElement("li");
      line.append(link);
      return line;
    });
    if (!links.length) return [];
    const list = document.createElement("ul");
    list.append(...links);
    return [titled("Logs, in the results folder", list)];
  }
  // What the model answered: the page has it once, in its own tab.
  function answers(row) {
    const name = ["model", "precision", "engine", "dataset"].map((c) => row[c]).filter((v) => v).join(" · ");
    const found = Array.from(document.querySelectorAll("[data-answers]")).find((d) => d.dataset.answers === name);
    if (!found) return [];
    const fold = document.createElement("details");
    const words = document.createElement("summary");
    words.textContent = "some of the model's answers";
    fold.append(words);
    fold.addEventListener("toggle", () => {
      if (fold.children.length < 2) fold.append(found.querySelector(".scroll").cloneNode(true));
    });
    return [titled("Answers", fold)];
  }

  function make(element, columns, rows, options = {}) {
    const table = new window.Tabulator(element, {
      data: rows, index: "_id", height: options.height || Math.min(560, 110 + 33 * Math.max(3, rows.length)), layout: "fitData", columnDefaults: { headerWordWrap: false },
      columns: (options.before || []).concat(grouped(columns, options.filters !== false)),
      placeholder: "No row: nothing is left by the filters.",
      rowFormatter: options.rowFormatter, initialSort: options.sort || [], selectableRows: false, movableColumns: false, autoResize: true,
      keybindings: false,
    });
    table.on("tableBuilt", () => named(element, options.label));
    table.on("renderComplete", () => named(element, options.label));
    return table;
  }
  // Tabulator leaves its grid and its filters without names.
  function named(element, label) {
    element.setAttribute("aria-label", label);
    const holder = element.querySelector(".tabulator-tableholder");
    if (holder) { // it scrolls, so the keyboard has to reach it
      holder.setAttribute("tabindex", "0");
      holder.setAttribute("role", "rowgroup");
      holder.setAttribute("aria-label", "rows of the " + label);
      holder.querySelector(".tabulator-table")?.setAttribute("role", "presentation");
    }
    element.querySelectorAll(".tabulator-col-group").forEach((group) => {
      group.setAttribute("role", "presentation"); // "columngroup", which it gives them, is no role
      ["aria-sort", "aria-title"].forEach((name) => group.removeAttribute(name));
    });
    element.querySelectorAll(".tabulator-header-filter input").forEach((input) => {
      if (!input.getAttribute("aria-label")) {
        const head = input.closest(".tabulator-col");
        input.setAttribute("aria-label", "filter " + (head?.getAttribute("tabulator-field") || ""));
      }
    });
  }

  const csvCell = (v) => (/[",\n\r]/.test(v) ? '"' + v.replace(/"/g, '""') + '"' : /^[=+@\t]/.test(v) ? "'" + v : v);
  function texts(columns, rows) {
    const raw = (r, n) => (r[n] === undefined ? "" : Array.isArray(r[n]) ? r[n].join(" ") : String(r[n]));
    const names = columns.flatMap((c) => (c.interval ? [c.name, c.name + "_low", c.name + "_high"] : [c.name]));
    const cell = (t) => t.replace(/\|/g, "\\|").replace(/\s+/g, " ");
    return {
      csv: () => [names.join(",")].concat(rows.map((r) => names.map((n) => csvCell(raw(r, n))).join(","))).join("\r\n") + "\r\n",
      json: () => JSON.stringify(rows.map((r) => Object.fromEntries(names.map((n) => [n, r[n] ?? null]))), null, 1),
      md: () => [columns.map((c) => cell(c.label)), columns.map((c) => (m.numeric(c) ? "---:" : "---"))]
        .concat(rows.map((r) => columns.map((c) => cell(m.shown(c, r[c.name]))))).map((line) => "| " + line.join(" | ") + " |").join("\n") + "\n",
    };
  }
  function save(text, name, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  m.tables = { LEAD, MAIN, make, present, telling, detail, exact, texts, save, passes };
})(window.moecap);
