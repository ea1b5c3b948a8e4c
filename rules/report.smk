# The CAP table, the charts and the report: pure functions of tables.


rule cap:
    input:
        metrics=expand(paths.metrics, deployment=campaign.reported)
        + campaign.published_files("metrics"),
        cost=expand(paths.cost, deployment=campaign.reported)
        + campaign.published_files("cost"),
        accuracy=campaign.all_accuracy_files() + campaign.published_files("accuracy"),
    output:
        cap=report(report_paths.cap, caption="../report/cap.rst", category="Tables"),
    log:
        log_of("cap", root=report_paths),
    benchmark:
        benchmark_of("cap", root=report_paths)
    conda:
        "../envs/core.yaml"
    params:
        cap=campaign.cap_params(),
        code=code("cap.py"),
    script:
        "../scripts/cap.py"


rule charts:
    input:
        cap=report_paths.cap,
        anatomy=campaign.anatomy_files(),
        routing_analysis=expand(paths.routing_analysis, deployment=campaign.reported),
    output:
        charts=report(
            directory(report_paths.charts),
            caption="../report/charts.rst",
            category="Charts",
            patterns=["{name}.svg"],
        ),
    log:
        log_of("charts", root=report_paths),
    benchmark:
        benchmark_of("charts", root=report_paths)
    conda:
        "../envs/core.yaml"
    params:
        charts=campaign.chart_params(),
        code=code("charts.py", "moecap/templates"),
    script:
        "../scripts/charts.py"


# The page draws its charts itself, so that it waits for nobody: `report` alone leaves no files of charts.
rule report:
    input:
        cap=report_paths.cap,
        anatomy=campaign.anatomy_files(),
        routing_analysis=expand(paths.routing_analysis, deployment=campaign.reported),
        machines=campaign.machine_files(),
        samples=campaign.sample_files(),
        measured_bytes=campaign.measured_bytes_files(),
        replay_check=campaign.replay_check_files(),
        cross_check=campaign.cross_check_files(),
        hosts=campaign.published_hosts_files(),
    output:
        report=report(
            report_paths.report, caption="../report/report.rst", category="Report"
        ),
    log:
        log_of("report", root=report_paths),
    benchmark:
        benchmark_of("report", root=report_paths)
    conda:
        "../envs/core.yaml"
    params:
        report=campaign.report_params(),
        code=code("report.py", "moecap/templates"),
    script:
        "../scripts/report.py"
