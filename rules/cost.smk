# Purchase, energy and cost per token, from the hardware catalogue: a price change reruns from here.


rule cost:
    input:
        metrics=paths.metrics,
        machine=deployment_machine,
    output:
        cost=paths.cost,
    log:
        log_of("cost", "deployment"),
    benchmark:
        benchmark_of("cost", "deployment")
    wildcard_constraints:
        deployment="[^/]+",
    group:
        "tables-{deployment}"
    conda:
        "../envs/core.yaml"
    resources:
        **asked("cost"),
    params:
        cost=lambda wc: campaign.params.cost(campaign.deployment(wc.deployment)),
        code=code("cost.py"),
    script:
        "../scripts/cost.py"
