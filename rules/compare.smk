# Two archives side by side: what got better or worse, beyond the intervals, and what differs in their provenance.


rule compare:
    input:
        a=compared("before"),
        b=compared("after"),
    output:
        table=f"{paths.comparison}.parquet",
        markdown=f"{paths.comparison}.md",
        html=f"{paths.comparison}.html",
    log:
        log_of("compare"),
    benchmark:
        benchmark_of("compare")
    conda:
        "../envs/core.yaml"
    params:
        code=code("compare.py"),
    script:
        "../scripts/compare.py"
