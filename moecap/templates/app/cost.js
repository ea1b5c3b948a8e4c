// Equations (5) to (7) again, so that a reader may change what electricity costs, how long a machine lives, the site's
// overhead and how busy it is. The same as moecap/cost; a test holds the two together.
(function (m) {
  "use strict";
  const HOURS_PER_YEAR = 8766;
  const energyKwh = (powerW, years, pue) => (powerW / 1000) * years * HOURS_PER_YEAR * pue;
  const usdPerToken = (hardwareUsd, kwh, usdPerKwh, tokensPerS, years, utilisation) =>
    (hardwareUsd + kwh * usdPerKwh) / (tokensPerS * years * HOURS_PER_YEAR * 3600 * utilisation);

  // The terms that a row was costed with, and what it costs with others: null where a part is not known.
  function terms(row) {
    return { usd_per_kwh: row.usd_per_kwh, years: row.lifetime_years, pue: row.pue ?? 1, utilisation: row.utilisation ?? 1 };
  }
  // The mean power over the life that the row's own energy stands for: idle hours are in it as its table had them.
  function lifePowerW(row) {
    const own = terms(row);
    if (row.energy_kwh === undefined || !own.years) return null;
    return row.energy_kwh / (own.years * HOURS_PER_YEAR * own.pue) * 1000;
  }
  function recost(row, changed) {
    const power = lifePowerW(row);
    const given = { ...terms(row), ...changed };
    if (power === null || row.hardware_usd === undefined || !row.output_tokens_per_s) return null;
    if (Object.values(given).some((v) => !(v >= 0)) || !given.years || !given.utilisation) return null;
    const kwh = energyKwh(power, given.years, given.pue);
    const perToken = usdPerToken(
      row.hardware_usd, kwh, given.usd_per_kwh, row.output_tokens_per_s, given.years, given.utilisation);
    return { energy_kwh: kwh, energy_usd: kwh * given.usd_per_kwh, usd_per_million_tokens: perToken * 1e6,
      purchase_share: row.hardware_usd / (row.hardware_usd + kwh * given.usd_per_kwh) };
  }
  m.cost = { energyKwh, usdPerToken, terms, lifePowerW, recost };
})(window.moecap);
