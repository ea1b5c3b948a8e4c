// Which deployment? The same rules as moecap/report/answers.py, over the points that the filters leave.
(function (m) {
  "use strict";
  const { dollars, number, percent, seconds, times, listing } = m.say;
  const has = (row, column) => row[column] !== undefined && row[column] !== null;

  function withinNoise(a, b, column) {
    if (a[column] === b[column]) return true;
    if (column === "accuracy" && has(a, "accuracy_stderr") && has(b, "accuracy_stderr")) {
      const error = Math.hypot(a.accuracy_stderr, b.accuracy_stderr);
      if (error) return Math.abs(a.accuracy - b.accuracy) / error < 2;
    }
    if (column.includes("usd_per") && a.hardware === b.hardware && a.devices === b.devices) {
      column = "output_tokens_per_s";
    }
    const ends = [a, b].flatMap((r) => [r[column + "_low"], r[column + "_high"]]);
    if (ends.some((e) => e === undefined || e === null)) return false;
    return ends[0] <= ends[3] && ends[2] <= ends[1];
  }

  function leaders(rows, column, moreIsBetter) {
    const have = rows.filter((r) => has(r, column));
    have.sort((a, b) => (moreIsBetter ? b[column] - a[column] : a[column] - b[column]));
    const found = new Map();
    for (const r of have) {
      if (!found.has(r.deployment) && withinNoise(have[0], r, column)) found.set(r.deployment, r);
    }
    return Array.from(found.values());
  }

  const at = (row) => (row.batch_size ? ", batch size " + row.batch_size : "");
  function accuracy(row) {
    const error = has(row, "accuracy_stderr")
      ? " ± " + (100 * row.accuracy_stderr).toFixed(1) + " points (standard error)" : "";
    const n = row.accuracy_n ? ", " + row.accuracy_n.toLocaleString("en-US") + " questions" : "";
    return percent(row.accuracy) + error + n;
  }

  function card(title, best, detail) {
    if (!best.length) return [];
    const names = best.map((r) => r.deployment);
    const shown = names.slice(0, 3).concat(names.length > 3 ? [names.length - 3 + " more"] : []);
    const tie = best.length > 1 ? "a tie within noise; the first: " : "";
    return [{ title: title, names: names, text: listing(shown), detail: tie + detail(best[0]), rows: best }];
  }

  function cards(rows, cost, tpotLimit, ttftLimit) {
    const limit = tpotLimit === null && ttftLimit === null ? m.page.tpot_limit_s : tpotLimit;
    const below = (r, column, value) => value === null || (has(r, column) && r[column] <= value);
    const inside = rows.filter((r) => below(r, "tpot_s", limit) && below(r, "ttft_s", ttftLimit));
    const limits = [["TPOT", limit], ["TTFT", ttftLimit]]
      .filter(([, value]) => value !== null).map(([name, value]) => name + " ≤ " + seconds(value)).join(" and ");
    return [].concat(
      card("Cheapest", leaders(rows, cost, false), (r) => dollars(r[cost]) + " " + m.page.costs[cost] + at(r)),
      card("Fastest", leaders(rows, "output_tokens_per_s", true),
        (r) => number(r.output_tokens_per_s) + " generated tokens/s" + at(r)),
      card("Most accurate", leaders(rows, "accuracy", true), accuracy),
      card("Cheapest with " + limits, leaders(inside, cost, false),
        (r) => dollars(r[cost]) + ", TPOT " + (has(r, "tpot_s") ? seconds(r.tpot_s) : "–") + at(r))
    );
  }

  function advice(rows, cost) {
    const sets = [leaders(rows, cost, false), leaders(rows, "accuracy", true), leaders(rows, "output_tokens_per_s", true)];
    const [cheap, right, fast] = sets;
    if (!cheap.length || new Set(rows.map((r) => r.deployment)).size < 2) return null;
    if (!right.length) return "Take " + cheap[0].deployment + " if cost decides; no accuracy was measured.";
    const all = right.filter((r) => sets.every((best) => best.some((b) => b.deployment === r.deployment)));
    if (all.length) {
      return "Take " + all[0].deployment + ": nothing here is cheaper, faster or more accurate than it beyond the noise.";
    }
    const accurate = new Set(right.map((r) => r.deployment));
    const both = cheap.filter((r) => accurate.has(r.deployment));
    if (both.length) {
      return "Take " + both[0].deployment + ": the cheapest and the most accurate within noise; only if throughput " +
        "decides, " + fast[0].deployment + " (" + number(fast[0].output_tokens_per_s) + " tokens/s).";
    }
    const sure = rows.filter((r) => accurate.has(r.deployment) && has(r, cost)).sort((a, b) => a[cost] - b[cost])[0];
    if (!sure) return null;
    if (!has(cheap[0], "accuracy")) {
      return "Take " + sure.deployment + "; the cheapest, " + cheap[0].deployment + ", has no accuracy.";
    }
    const loss = right[0].accuracy - cheap[0].accuracy;
    return "Take " + cheap[0].deployment + " if " + (100 * loss).toFixed(1) + " points less accuracy is acceptable; " +
      "otherwise " + sure.deployment + ", at " + times(sure[cost] / cheap[0][cost]) + " the cost.";
  }

  m.answers = { withinNoise, leaders, cards, advice };
})(window.moecap);
