# Timed throughput and latency, untraced. All points of a deployment share one engine load; a point that is measured
# goes into the spool at once, and the declared outputs are assembled from there.


rule calibrate:
    output:
        machine=paths.machine,
    log:
        log_of("calibrate", "hardware"),
    benchmark:
        benchmark_of("calibrate", "hardware")
    conda:
        f"../envs/{graph.conda_environment}.yaml"
    threads: timed_threads
    resources:
        **asked("calibrate"),
    params:
        hardware=lambda wc: campaign.params.machine(wc.hardware),
        code=code("calibrate.py"),
    script:
        "../scripts/calibrate.py"


rule measure:
    input:
        manifest=deployment_manifest,
        machine=deployment_machine,
        data=deployment_demo_data,
    output:
        points=paths.points,
        requests=paths.requests,
        schedule=paths.schedule,
    log:
        log_of("performance", "deployment"),
    benchmark:
        benchmark_of("measure", "deployment")
    conda:
        f"../envs/{graph.conda_environment}.yaml"
    container:
        cluster.container
    threads: timed_threads
    resources:
        **asked("measure"),
    params:
        run=lambda wc: campaign.params.performance(campaign.deployment(wc.deployment)),
        code=lambda wc: code("performance.py", graph.engine_file(wc.deployment)),
    script:
        "../scripts/performance.py"
