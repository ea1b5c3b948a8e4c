# What one asks for beside `all`: a stage, or one deployment by its id. `report`, `archive` and `plan` are the rules of
# those names.


rule accuracy:
    input:
        graph.all_accuracy_files(),


rule performance:
    input:
        expand(paths.points, deployment=campaign.deployments),


for deployment in campaign.deployments:

    rule:
        name:
            deployment
        input:
            fill(paths.cost, deployment=deployment),
            graph.accuracy_files(campaign.deployment(deployment)),


# Tables, charts and, where no partition has a network, downloads: they are not worth a place in a queue.
workflow.localrules(*filter(workflow.is_rule, local_rules(cluster.site)))
