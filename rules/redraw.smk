# Charts and report from an archive alone (`archive: FILE.tar.zst`), verified before anything is drawn.


rule report:
    input:
        archive=campaign.archive_file,
    output:
        cap=report(report_paths.cap, caption="../report/cap.rst", category="Tables"),
        charts=report(
            directory(report_paths.charts),
            caption="../report/charts.rst",
            category="Charts",
            subcategory=chart_section,
            labels={"chart": "{name}"},
            patterns=["{name}.svg"],
        ),
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
        captions=chart_captions(),
        code=code("redraw.py", "moecap/templates"),
    script:
        "../scripts/redraw.py"
