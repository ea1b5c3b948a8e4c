# One citable file: an RO-Crate with tables, charts, report, config, versions and checksums.


rule archive:
    input:
        cap=paths.cap,
        charts=paths.charts,
        report=paths.report,
        metrics=expand(paths.metrics, deployment=campaign.deployments),
        steps=expand(paths.steps, deployment=campaign.deployments),
        cost=expand(paths.cost, deployment=campaign.deployments),
        anatomy=graph.anatomy_files(),
        accuracy=graph.all_accuracy_files(),
        samples=graph.sample_files(),
        measured_bytes=graph.measured_bytes_files(),
        replay_check=graph.replay_check_files(),
        machines=expand(paths.machine, hardware=graph.hardware_in_use),
    output:
        archive=fill(paths.archive, name=campaign.config.archive),
    log:
        log_of("archive"),
    benchmark:
        benchmark_of("archive")
    conda:
        "../envs/core.yaml"
    params:
        archive=campaign.params.archive(),
        code=code("archive.py"),
    script:
        "../scripts/archive.py"
