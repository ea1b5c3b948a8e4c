# Which experts every token used, read afterwards by replaying the timed run's own sequences.


rule replay:
    input:
        manifest=paths.manifest,
        requests=replay_requests,
        anatomy=paths.anatomy,
    output:
        routing=paths.routing,
    log:
        log_of("replay", "model", "precision"),
    benchmark:
        benchmark_of("replay", "model", "precision")
    conda:
        f"../envs/{campaign.conda_environment}.yaml"
    container:
        cluster.container
    threads: 2
    resources:
        **asked("replay"),
    params:
        replay=lambda wc: campaign.replay_params(wc.model, wc.precision),
        code=code("replay.py"),
    script:
        "../scripts/replay.py"
