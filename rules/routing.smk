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
        f"../envs/{graph.conda_environment}.yaml"
    container:
        cluster.container
    threads: 2
    resources:
        **asked("replay"),
    params:
        replay=lambda wc: campaign.params.replay(wc.model, wc.precision),
        code=code("replay.py"),
    script:
        "../scripts/replay.py"


# How far that can be trusted here: the same batches once more, with the routers read inside the decode.
rule trace_decode:
    input:
        manifest=deployment_manifest,
        requests=paths.requests,
    output:
        decoded=paths.decoded,
        schedule=paths.decoded_schedule,
    log:
        log_of("trace_decode", "deployment"),
    benchmark:
        benchmark_of("trace_decode", "deployment")
    conda:
        f"../envs/{graph.conda_environment}.yaml"
    container:
        cluster.container
    threads: timed_threads
    resources:
        **asked("trace_decode"),
    params:
        run=lambda wc: campaign.params.trace_decode(campaign.deployment(wc.deployment)),
        code=lambda wc: code("trace_decode.py", graph.engine_file(wc.deployment)),
    script:
        "../scripts/trace_decode.py"


rule check_replay:
    input:
        decoded=paths.decoded,
        schedule=paths.decoded_schedule,
        points=paths.points,
        requests=paths.requests,
        routing=by_variant(paths.routing),
        anatomy=by_variant(paths.anatomy),
    output:
        table=paths.replay_check,
    log:
        log_of("check_replay", "deployment"),
    benchmark:
        benchmark_of("check_replay", "deployment")
    conda:
        "../envs/core.yaml"
    params:
        code=code("check_replay.py"),
    script:
        "../scripts/check_replay.py"
