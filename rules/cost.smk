# Purchase, energy and cost per token, from the hardware catalogue: a price change reruns from here.


rule cost:
    input:
        metrics=paths.metrics,
        machine=deployment_machine,
    output:
        cost=paths.cost,
    wildcard_constraints:
        deployment="[^/]+",
    params:
        cost=lambda wc: campaign.cost_params(campaign.deployment(wc.deployment)),
        code=code("cost.py"),
    log:
        log_of("cost", "deployment"),
    benchmark:
        benchmark_of("cost", "deployment")
    conda:
        "../envs/core.yaml"
    script:
        "../scripts/cost.py"
