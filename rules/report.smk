# The CAP table, the charts and the report: pure functions of tables.


rule cap:
    input:
        metrics=expand(paths.metrics, deployment=campaign.deployments)
        + campaign.published_files("metrics"),
        cost=expand(paths.cost, deployment=campaign.deployments)
        + campaign.published_files("cost"),
        accuracy=campaign.all_accuracy_files() + campaign.published_files("accuracy"),
    output:
        cap=report(paths.cap, caption="../report/cap.rst", category="Tables"),
    log:
        log_of("cap"),
    benchmark:
        benchmark_of("cap")
    conda:
        "../envs/core.yaml"
    params:
        cap=campaign.cap_params(),
        code=code("cap.py"),
    script:
        "../scripts/cap.py"


rule charts:
    input:
        cap=paths.cap,
        anatomy=campaign.anatomy_files(),
        routing_analysis=expand(paths.routing_analysis, deployment=campaign.deployments),
    output:
        charts=report(
            directory(paths.charts),
            caption="../report/charts.rst",
            category="Charts",
            patterns=["{name}.svg"],
        ),
    log:
        log_of("charts"),
    benchmark:
        benchmark_of("charts")
    conda:
        "../envs/core.yaml"
    params:
        charts=campaign.chart_params(),
        code=code("charts.py"),
    script:
        "../scripts/charts.py"


rule report:
    input:
        cap=paths.cap,
        charts=paths.charts,
        anatomy=campaign.anatomy_files(),
        routing_analysis=expand(paths.routing_analysis, deployment=campaign.deployments),
        machines=expand(paths.machine, hardware=campaign.hardware_in_use),
        samples=campaign.sample_files(),
    output:
        report=report(paths.report, caption="../report/report.rst", category="Report"),
    log:
        log_of("report"),
    benchmark:
        benchmark_of("report")
    conda:
        "../envs/core.yaml"
    params:
        report=campaign.report_params(),
        code=code("report.py", "moecap/templates"),
    script:
        "../scripts/report.py"
