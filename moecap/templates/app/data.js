// The rows of the page: read once from its JSON, and how each of their columns is written.
window.moecap = (function () {
  "use strict";
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const themes = JSON.parse(document.getElementById("chart-themes").textContent);

  function unpacked(table) {
    const rows = Array.from({ length: table.count }, (_, i) => ({ _id: i }));
    for (const [name, column] of Object.entries(table.data)) {
      for (let i = 0; i < rows.length; i++) {
        let value;
        if (Array.isArray(column)) value = column[i];
        else if ("all" in column) value = column.all;
        else value = column.at[i] === null ? null : column.of[column.at[i]];
        if (value !== null) rows[i][name] = value;
      }
    }
    return rows;
  }

  const rows = unpacked(page.table);
  const columns = new Map(page.table.columns.map((c) => [c.name, c]));

  // Figures that are no column themselves: per device, or the inverse of one.
  for (const [name, figure] of Object.entries(page.figures)) {
    if (columns.has(name) || !columns.has(figure.column)) continue;
    let any = false;
    for (const row of rows) {
      const [value, low, high] = figureOf(row, figure);
      if (value === null) continue;
      any = true;
      row[name] = value;
      if (low !== null) row[name + "_low"] = low;
      if (high !== null) row[name + "_high"] = high;
    }
    if (any) {
      columns.set(name, {
        name: name, label: figure.label, unit: "1/s", form: "number", interval: true,
        section: columns.get(figure.column).section, meaning: "Computed in the page: " + figure.label + ".",
      });
    }
  }

  // [value, low, high] of a figure; null where the row lacks a part of it.
  function figureOf(row, figure) {
    let values = ["", "_low", "_high"].map((end) => row[figure.column + end] ?? null);
    if (figure.per) values = values.map((v) => (v === null || !row[figure.per] ? null : v / row[figure.per]));
    if (figure.inverse) {
      const [middle, low, high] = values.map((v) => (v ? 1 / v : null));
      values = [middle, high, low];
    }
    return figure.log ? values.map((v) => (v !== null && v > 0 ? v : null)) : values;
  }

  // --- numbers in words: the same rules as moecap/report/numbers.py ----------------------------------------------
  const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  function significant(value, digits) {
    const text = value.toPrecision(digits);
    if (text.includes("e")) return String(Number(text));
    return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  }
  function number(value, digits = 4) {
    return Math.abs(value) >= 10 ** (digits - 1) ? grouped.format(value) : significant(value, digits);
  }
  const PREFIXES = { "-4": "p", "-3": "n", "-2": "µ", "-1": "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P" };
  function prefixed(value, digits = 3) {
    if (value === 0) return "0 ";
    const rounded = Number(value.toExponential(digits - 1));
    const power = Math.min(Math.max(Math.floor(Math.log10(Math.abs(rounded)) / 3), -4), 5);
    return significant(rounded / 1000 ** power, digits) + " " + PREFIXES[power];
  }
  function dollars(value) {
    const size = Math.abs(value);
    if (size >= 100) return "$" + grouped.format(value);
    if (size >= 0.1 || value === 0) return "$" + value.toFixed(2);
    return "$" + value.toFixed(Math.min(12, 2 - Math.floor(Math.log10(size)))).replace(/0+$/, "");
  }
  const percent = (value, digits = 1) => (100 * value).toFixed(digits) + "%";
  const seconds = (value) => prefixed(value) + "s";
  const times = (ratio) =>
    (ratio >= 0.1 && ratio < 10 ? ratio.toFixed(2) : significant(ratio, ratio >= 10 ? 3 : 2)) + "×";
  const signed = (value, digits = 1) => ((value >= 0 ? "+" : "") + value.toFixed(digits)).replace("-", "−");
  const listing = (parts) =>
    parts.length > 1 ? parts.slice(0, -1).join(", ") + " and " + parts[parts.length - 1] : parts.join("");
  const FORMS = {
    text: String, count: (v) => grouped.format(v), share: percent, ratio: times, seconds: seconds, usd: dollars,
    number: number, prefixed: prefixed, flag: (v) => (v ? "yes" : "no"), list: (v) => v.join(", "),
    time: (v) => new Date(1000 * v).toISOString().slice(0, 16).replace("T", " "),
  };
  function shown(column, value) {
    if (value === null || value === undefined || value === "") return "–";
    const text = FORMS[column.form](value);
    return column.form === "prefixed" ? text + column.unit : text;
  }
  const numeric = (column) => !["text", "flag", "list"].includes(column.form);

  return {
    page, themes, rows, columns, figureOf, numeric, shown,
    say: { number, prefixed, dollars, percent, seconds, times, signed, listing },
  };
})();
