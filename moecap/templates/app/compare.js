// Two to four rows beside one another: a radar against the reference, ratios, differences in standard errors.
(function (m) {
  "use strict";
  const SHOWN = ["accuracy", "output_tokens_per_s", "tokens_per_s_per_gpu", "ttft_s", "tpot_s", "usd_per_million_tokens", "hardware_usd",
    "usd_per_correct_answer", "joules_per_token", "power_w", "decode_s_mbu", "decode_s_mfu", "devices", "batch_size"];
  const Z95 = 1.959963984540054;

  // Distance from the centre: moecap/charts/radar.py's `radial`; a test holds the two together.
  function radial(value, reference, axis) {
    const ratio = axis.higher_is_better ? value / reference : reference / value;
    return ratio <= 0 ? 0 : 1 / (1 + 3 ** (-Math.log(ratio) / Math.log(axis.span)));
  }
  // The difference in standard errors: of accuracies, else of logarithms whose 95% intervals are the columns' ends.
  function z(a, b, column) {
    if (column === "accuracy" && a.accuracy_stderr !== undefined && b.accuracy_stderr !== undefined) {
      const error = Math.hypot(a.accuracy_stderr, b.accuracy_stderr);
      return error ? (a.accuracy - b.accuracy) / error : null;
    }
    const spread = (r) => {
      const [low, high] = [r[column + "_low"], r[column + "_high"]];
      return low > 0 && high > 0 ? Math.log(high / low) / (2 * Z95) : null;
    };
    const [x, y] = [spread(a), spread(b)];
    if (x === null || y === null || !(a[column] > 0) || !(b[column] > 0) || !Math.hypot(x, y)) return null;
    return Math.log(a[column] / b[column]) / Math.hypot(x, y);
  }
  const name = (r, rows) => r.deployment + (rows.filter((o) => o.deployment === r.deployment).length > 1 ? ", " + r.dataset + ", batch " + (r.batch_size ?? "–") : "");

  function anchorOf(picked, points) {
    const own = points.concat(m.rows).filter((r) => r.deployment === m.state.now.reference && r.dataset === picked[0].dataset);
    return own.find((r) => r.batch_size === picked[0].batch_size) || own[0] || picked[0];
  }

  async function show(rows, points) {
    const place = document.getElementById("compare");
    let picked = m.state.now.picked.map((i) => m.rows[i]);
    const asked = picked.length > 1;
    if (!asked) { // nobody has picked: the reference and the best of the first rows
      const best = rows.slice().sort((a, b) => (b.pareto_frequency || 0) - (a.pareto_frequency || 0));
      const reference = rows.find((r) => r.deployment === m.state.now.reference);
      picked = Array.from(new Set((picked.length ? picked : reference ? [reference] : []).concat(best)))
        .filter((r, i, all) => r.dataset === all[0].dataset).slice(0, 3);
    }
    document.getElementById("compare-note").textContent = asked ? "" : "Tick two to four rows of the leaderboard to compare others.";
    place.hidden = picked.length < 2;
    if (place.hidden) return;
    const anchor = anchorOf(picked, points);
    table(picked, anchor);
    const axes = m.page.axes.map((a) => (a.column === "usd_per_million_tokens" && m.state.now.cost ? { ...a, column: m.state.now.cost, label: "Cost " + m.page.costs[m.state.now.cost] } : a));
    const whole = picked.filter((r) => axes.every((a) => r[a.column] > 0 && anchor[a.column] > 0));
    const figure = document.getElementById("compare-radar");
    if (!whole.length) { m.charts.empty(figure, "No radar: cost, accuracy and throughput are not all there."); return; }
    const names = whole.map((r) => name(r, picked));
    const corners = whole.flatMap((r, k) => axes.map((axis, i) => {
      const angle = Math.PI / 2 - (2 * Math.PI * i) / axes.length;
      const distance = radial(r[axis.column], anchor[axis.column], axis);
      const column = m.columns.get(axis.column);
      return { deployment: names[k], dataset: r.dataset, batch_size: r.batch_size ?? null, corner: i, axis: axis.label,
        value: r[axis.column], unit: m.page.costs[axis.column] || column.label, against: m.say.times(r[axis.column] / anchor[axis.column]) + " " + anchor.deployment,
        x: distance * Math.cos(angle), y: distance * Math.sin(angle) };
    }));
    const spec = m.charts.copy(m.page.radar.spec);
    m.charts.series(spec, "deployment", names);
    const web = m.charts.copy(m.page.radar.web);
    // The values stand at the corners' names, one line per row.
    web.axes = web.axes.map((a, i) => ({ ...a, text: [axes[i].label].concat(whole.map((r) => m.shown(m.columns.get(axes[i].column), r[axes[i].column]))) }));
    spec.width = Math.min(520, Math.max(280, figure.clientWidth - 24));
    spec.height = Math.round(spec.width * 0.82);
    spec.datasets = { ...web, corners: corners };
    await m.charts.draw(figure, spec, "Radar of " + names.join(", ") + " against " + anchor.deployment);
  }

  function table(picked, anchor) {
    const body = document.getElementById("compare-table");
    const cell = (tag, text, attributes = {}) => { const c = document.createElement(tag); c.textContent = text; Object.entries(attributes).forEach(([k, v]) => c.setAttribute(k, v)); return c; };
    const head = document.createElement("tr");
    head.append(cell("th", "figure", { scope: "col" }), ...picked.map((r) => {
      const th = cell("th", name(r, picked) + (r === anchor ? " (reference)" : ""), { scope: "col" });
      if (m.state.now.picked.includes(r._id)) {
        const away = cell("button", "×", { type: "button", class: "quiet-button", "aria-label": "do not compare " + name(r, picked) });
        away.addEventListener("click", () => m.pick(r._id, false));
        th.append(" ", away);
      }
      return th;
    }));
    const lines = SHOWN.filter((c) => m.columns.has(c) && picked.some((r) => r[c] !== undefined)).map((c) => {
      const column = m.columns.get(c);
      const line = document.createElement("tr");
      line.append(cell("th", column.label, { scope: "row", title: column.meaning }), ...picked.map((r) => {
        const td = cell("td", m.shown(column, r[c]), { class: "number", title: m.tables.exact(column, r) });
        if (r !== anchor && typeof r[c] === "number" && typeof anchor[c] === "number" && anchor[c]) {
          const errors = z(r, anchor, c);
          const size = c === "accuracy" ? m.say.signed(100 * (r[c] - anchor[c])) + " points" : m.say.times(r[c] / anchor[c]);
          const noise = errors === null ? "" : ", " + Math.abs(errors).toFixed(1) + " standard errors" + (Math.abs(errors) < 2 ? ": within noise" : "");
          td.append(cell("small", size + noise));
        }
        return td;
      }));
      return line;
    });
    body.querySelector("thead").replaceChildren(head);
    body.querySelector("tbody").replaceChildren(...lines);
  }
  m.compare = { show, radial, z };
})(window.moecap);
