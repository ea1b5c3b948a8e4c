"""What a deployment draws and costs, and what is made of cost, accuracy and performance together."""

from moecap.columns.base import F64, FLAG, TEXT, Column

ENERGY = (
    Column(
        "power_w",
        F64,
        "W",
        "Mean power of the deployment under load; `energy_source` says what was measured of it.",
        "P of eq. (6)",
    ),
    Column("power_covers", TEXT, "", "Components that `power_w` covers; links are part of the chips' TDP."),
    Column("energy_j", F64, "J", "Energy measured over all repeats; null if it was not."),
    Column(
        "energy_source",
        TEXT,
        "",
        "Where the power comes from: nvml or rapl (measured), estimated (TDP), given; `a + b`: both, for different "
        "parts.",
    ),
    Column("joules_per_token", F64, "J", "Energy per generated token under load; of a plan, of the devices alone."),
    Column(
        "joules_per_correct_answer",
        F64,
        "J",
        "Energy of a request as in the timed run, over `accuracy`: what is drawn until one answer is right.",
    ),
    Column("tokens_per_s_per_kw", F64, "1/(s kW)", "Throughput per kW."),
    Column("tokens_per_kwh", F64, "1/kWh", "Generated tokens per kWh under load.", "§2"),
    *(
        Column(f"estimated_{part}_w", F64, "W", f"Power of {part} under full load, estimated from its TDP.", "eq. (6)")
        for part in ("gpu", "cpu", "dram", "ssd", "host")
    ),
)

_PARTS = {name: name for name in ("gpu", "cpu", "motherboard", "dram", "ssd", "nic")}
_PARTS["unsplit"] = "what is not told apart"

COST = (
    Column("hardware_usd", F64, "USD", "Purchase price of the whole deployment.", "C_hardware of eq. (5)"),
    *(Column(f"hardware_{p}_usd", F64, "USD", f"Of `hardware_usd`: {what}.", "eq. (5)") for p, what in _PARTS.items()),
    Column("energy_kwh", F64, "kWh", "Energy over the lifetime.", "C_energy of eq. (6)"),
    Column("energy_usd", F64, "USD", "Price of `energy_kwh`.", "eqs. (6), (7)"),
    Column(
        "usd_per_million_tokens",
        F64,
        "USD",
        "Cost of 10⁶ generated tokens over the lifetime.",
        "C_token of eq. (7) × 10⁶",
    ),
    Column("tokens_per_usd", F64, "1/USD", "Generated tokens per dollar.", "1 / C_token of eq. (7)"),
    Column("usd_per_million_input_tokens", F64, "USD", "Cost of 10⁶ prompt tokens: the time of prefill."),
    Column("usd_per_million_output_tokens", F64, "USD", "Cost of 10⁶ generated tokens: the time of decode alone."),
    Column("capital_share", F64, "1", "Share of the purchase in the cost of the lifetime."),
    Column("operating_share", F64, "1", "Share of the energy in the cost of the lifetime."),
    Column("usd_per_hour", F64, "USD/h", "Cost of an hour under load, purchase and energy."),
    Column("run_usd", F64, "USD", "Cost of the timed runs, all repeats."),
    Column(
        "evaluation_usd",
        F64,
        "USD",
        "Cost of serving as many requests as accuracy asked questions, each as in the timed run.",
    ),
    Column(
        "usd_per_correct_answer",
        F64,
        "USD",
        "Cost of a request as in the timed run, over `accuracy`: what is paid until one answer is right.",
    ),
    Column("rental_usd_per_hour", F64, "USD/h", "What the same devices cost to rent."),
    Column("rental_usd_per_million_tokens", F64, "USD", "Cost of 10⁶ generated tokens on rented devices."),
    Column("rental_source", TEXT, "", "Offers that the rental price is made of."),
    Column(
        "spot_usd_per_million_tokens",
        F64,
        "USD",
        "The same on spot instances, interruptions included; null unless the config describes them.",
    ),
    Column("spot_source", TEXT, "", "Offers that the spot price is made of."),
    Column(
        "elastic_usd_per_million_tokens", F64, "USD", "The same in rented replicas that follow the config's demand."
    ),
    Column("elastic_replicas", F64, "1", "Mean number of those replicas."),
    Column(
        "serverless_usd_per_million_tokens",
        F64,
        "USD",
        "The same on workers paid by the second, cold starts and idle time included.",
    ),
    Column("serverless_source", TEXT, "", "Offers that the serverless price is made of."),
    Column("api_usd_per_million_input_tokens", F64, "USD", "What others ask for 10⁶ prompt tokens of the model."),
    Column("api_usd_per_million_output_tokens", F64, "USD", "What others ask for 10⁶ generated tokens of the model."),
    Column("api_source", TEXT, "", "Offers that the API price is made of."),
    Column("gpu_only_usd_per_million_tokens", F64, "USD", "What costing the GPUs alone would have said."),
    Column("gpu_only_error", F64, "1", "How far that is from `usd_per_million_tokens`: −0.1 is 10% too low."),
    Column("gpu_only_purchase_error", F64, "1", "How far the GPUs' price alone is from `hardware_usd`."),
    Column("gpu_only_energy_error", F64, "1", "How far the GPUs' power alone is from `power_w`."),
    Column(
        "lifetime_years",
        F64,
        "a",
        "Lifetime R over which the purchase is spread; a year is 8,766 h.",
        "R of eq. (7)",
    ),
    Column("usd_per_kwh", F64, "USD/kWh", "Price of electricity.", "$/kWh of eq. (7)"),
    Column("pue", F64, "1", "Power usage effectiveness of the site."),
    Column("utilisation", F64, "1", "Share of the lifetime under load."),
    Column(
        "price_status",
        TEXT,
        "",
        "What the prices rest on, the weakest of them: verified | derived | fitted | unverified | assumption.",
    ),
    Column("price_source", TEXT, "", "Where the prices come from, with date."),
    Column("price_complete", FLAG, "", "False: a part has no price, so that `hardware_usd` is a lower bound."),
    Column("price_notes", TEXT, "", "What is counted how."),
    Column("electricity_status", TEXT, "", "What the price of electricity rests on."),
    Column("electricity_source", TEXT, "", "Where the price of electricity comes from."),
    Column(
        "figures_unverified",
        FLAG,
        "",
        "True: a figure behind the cost (of a plan, behind its speed too) has no source that was read.",
    ),
)

#: Of a full server, and what counting its GPUs alone would have said.
HOSTS = (
    Column("gpu", TEXT, "", "Its GPU.", label="GPU"),
    Column("whole_usd", F64, "USD", "Price of the server.", label="server"),
    Column("gpus_usd", F64, "USD", "Price of its GPUs alone.", label="GPUs alone"),
    Column("purchase_error", F64, "1", "GPUs' price / whole price - 1.", label="error", form="error"),
    Column("whole_w", F64, "W", "Power of the server; null: of GPUs only.", label="server's power"),
    Column("gpus_w", F64, "W", "Power of its GPUs alone.", label="GPUs' power"),
    Column("power_error", F64, "1", "GPUs' power / whole power - 1.", label="error", form="error"),
    Column(
        "lifetime_error",
        F64,
        "1",
        "The same of purchase and energy together.",
        label="error over the lifetime",
        form="error",
    ),
    Column("covers", TEXT, "", "What the power covers.", label="power covers"),
)

TRADE_OFF = (
    Column(
        "cap_class",
        TEXT,
        "",
        "Which of C, A and P the row holds against the reference deployment; cost per token.",
        "§3",
    ),
    Column("cap_class_purchase", TEXT, "", "The same with the cost of buying.", "§3"),
    Column("cap_reference", TEXT, "", "Deployment that classes are measured against."),
    Column(
        "pareto_frequency",
        F64,
        "1",
        "Share of draws (cost, accuracy and throughput within their intervals) in which no other row of the dataset is "
        "better in one of the three and no worse in the others.",
    ),
)
