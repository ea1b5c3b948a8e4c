# Checkpoints at full precision: trained here (the demo), or downloaded at a pinned revision and verified.


rule demo_data:
    output:
        manifest=paths.demo_data,
    log:
        log_of("demo_data"),
    benchmark:
        benchmark_of("demo_data")
    conda:
        "../envs/core.yaml"
    params:
        seed=graph.demo_seed,
        code=code("demo_data.py"),
    script:
        "../scripts/demo_data.py"


rule train_demo:
    input:
        data=paths.demo_data,
    output:
        manifest=f"{paths.results}/models/{{variant}}/manifest.json",
    log:
        log_of("train_demo", "variant"),
    benchmark:
        benchmark_of("train_demo", "variant")
    wildcard_constraints:
        variant=one_of(graph.variants_of("train_demo")),
    conda:
        "../envs/engine-cpu.yaml"
    threads: timed_threads
    resources:
        **asked("train_demo"),
    params:
        train=lambda wc: campaign.params.train(wc.variant),
        code=code("train_demo.py"),
    script:
        "../scripts/train_demo.py"


rule download:
    output:
        manifest=f"{paths.results}/models/{{variant}}/manifest.json",
    log:
        log_of("download", "variant"),
    benchmark:
        benchmark_of("download", "variant")
    wildcard_constraints:
        variant=one_of(graph.variants_of("download")),
    conda:
        "../envs/core.yaml"
    resources:
        **asked("download"),
    params:
        source=lambda wc: campaign.params.download(wc.variant),
        code=code("download.py"),
    script:
        "../scripts/download.py"
