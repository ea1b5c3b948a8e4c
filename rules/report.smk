# The CAP table, the charts and the report: pure functions of tables.


rule cap:
    input:
        metrics=expand(paths.metrics, deployment=graph.reported)
        + graph.published_files("metrics"),
        cost=expand(paths.cost, deployment=graph.reported)
        + graph.published_files("cost"),
        accuracy=graph.all_accuracy_files() + graph.published_files("accuracy"),
    output:
        cap=report(report_paths.cap, caption="../report/cap.rst", category="Tables"),
    log:
        log_of("cap", root=report_paths),
    benchmark:
        benchmark_of("cap", root=report_paths)
    conda:
        "../envs/core.yaml"
    params:
        cap=campaign.params.cap(),
        code=code("cap.py"),
    script:
        "../scripts/cap.py"


rule charts:
    input:
        cap=report_paths.cap,
        anatomy=graph.anatomy_files(),
        routing_analysis=expand(paths.routing_analysis, deployment=graph.reported),
    output:
        charts=report(
            directory(report_paths.charts),
            caption="../report/charts.rst",
            category="Charts",
            subcategory=chart_section,
            labels={"chart": "{name}"},
            patterns=["{name}.svg"],
        ),
    log:
        log_of("charts", root=report_paths),
    benchmark:
        benchmark_of("charts", root=report_paths)
    conda:
        "../envs/core.yaml"
    params:
        charts=campaign.params.charts(),
        captions=chart_captions(),
        code=code("charts.py", "moecap/templates"),
    script:
        "../scripts/charts.py"


# The page draws its charts itself, so that it waits for nobody: `report` alone leaves no files of charts.
rule report:
    input:
        cap=report_paths.cap,
        anatomy=graph.anatomy_files(),
        routing_analysis=expand(paths.routing_analysis, deployment=graph.reported),
        machines=graph.machine_files(),
        samples=graph.sample_files(),
        measured_bytes=graph.measured_bytes_files(),
        replay_check=graph.replay_check_files(),
        cross_check=graph.cross_check_files(),
        plan=graph.plan_files(),
        hosts=graph.published_hosts_files(),
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
        report=campaign.params.report(),
        code=code("report.py", "moecap/templates"),
    script:
        "../scripts/report.py"
