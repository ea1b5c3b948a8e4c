# Printed figures (the paper's tables), entering where measured accuracy and throughput would.


rule published:
    input:
        tables=graph.published_tables,
    output:
        metrics=fill(paths.published, stage="metrics"),
        accuracy=fill(paths.published, stage="accuracy"),
    log:
        log_of("published"),
    benchmark:
        benchmark_of("published")
    conda:
        "../envs/core.yaml"
    params:
        code=code("paper.py"),
    script:
        "../scripts/paper.py"


rule published_cost:
    input:
        metrics=fill(paths.published, stage="metrics"),
    output:
        cost=fill(paths.published, stage="cost"),
    log:
        log_of("published_cost"),
    benchmark:
        benchmark_of("published_cost")
    conda:
        "../envs/core.yaml"
    params:
        cost=campaign.params.published_cost(),
        code=code("cost.py"),
    script:
        "../scripts/cost.py"


# The servers that the paper argues with in its section 5: what the GPUs alone are of their cost.
rule published_hosts:
    output:
        hosts=fill(paths.published, stage="hosts"),
    log:
        log_of("published_hosts"),
    benchmark:
        benchmark_of("published_hosts")
    conda:
        "../envs/core.yaml"
    params:
        hosts=campaign.params.published_hosts(),
        code=code("hosts.py"),
    script:
        "../scripts/hosts.py"
