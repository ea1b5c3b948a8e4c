# One citable file: an RO-Crate with tables, charts, report, config, versions and checksums.


rule archive:
    input:
        cap=paths.cap,
        charts=paths.charts,
        report=paths.report,
        metrics=expand(paths.metrics, deployment=campaign.deployments),
        steps=expand(paths.steps, deployment=campaign.deployments),
        cost=expand(paths.cost, deployment=campaign.deployments),
        anatomy=campaign.anatomy_files(),
        accuracy=campaign.all_accuracy_files(),
        samples=campaign.sample_files(),
        measured_bytes=campaign.measured_bytes_files(),
        replay_check=campaign.replay_check_files(),
        machines=expand(paths.machine, hardware=campaign.hardware_in_use),
    output:
        archive=fill(paths.archive, name=campaign.config.archive),
    log:
        log_of("archive"),
    benchmark:
        benchmark_of("archive")
    conda:
        "../envs/core.yaml"
    params:
        archive=campaign.archive_params(),
        code=code("archive.py"),
    script:
        "../scripts/archive.py"
