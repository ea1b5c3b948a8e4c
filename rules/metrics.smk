# The step table (schedule × routing) and the utilizations. From here on no engine and no GPU is needed.


rule metrics:
    input:
        points=paths.points,
        requests=paths.requests,
        schedule=paths.schedule,
        routing=by_variant(paths.routing),
        anatomy=by_variant(paths.anatomy),
        machine=deployment_machine,
    output:
        metrics=paths.metrics,
        steps=paths.steps,
        routing_analysis=paths.routing_analysis,
    log:
        log_of("metrics", "deployment"),
    benchmark:
        benchmark_of("metrics", "deployment")
    wildcard_constraints:
        deployment="[^/]+",
    group:
        "tables-{deployment}"
    conda:
        "../envs/core.yaml"
    resources:
        **asked("metrics"),
    params:
        metrics=lambda wc: campaign.params.metrics(campaign.deployment(wc.deployment)),
        code=code("metrics.py"),
    script:
        "../scripts/metrics.py"
