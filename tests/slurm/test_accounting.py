"""The profile on a cluster that keeps accounts: slurmdbd over a MariaDB, both started here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import ETC, Cluster, Nodes, Partition, _free_port, _output, _program, why_not
from tests.slurm.test_faults import Run

MISSING = [p for p in ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr", "sacct") if not _program(p)]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no Slurm here: {why_not()}"),
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not found; `apt-get install slurmdbd mariadb-server`"),
]


class AccountedCluster(Cluster):
    """A cluster whose jobs are written into a database of its own."""

    def __init__(self, **given: object) -> None:
        self.port = _free_port()
        settings = {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": str(self.port),
        }
        super().__init__(settings=settings, **given)  # type: ignore[arg-type]

    def _configure(self) -> None:
        # The clients of slurmdbd look for munge's socket here, not in AuthInfo.
        self.settings["AccountingStoragePass"] = f"{self.run_folder}/munge.socket"
        super()._configure()

    def _start(self) -> None:
        data = self.folder / "mariadb"
        socket = self.run_folder / "db.socket"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"],
            check=True,
            capture_output=True,
        )
        self._run(
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket}", "--user=root", "--skip-networking",
            f"--pid-file={data}/pid", "--innodb-buffer-pool-size=64M",
        )  # fmt: skip
        self.wait(socket.exists, "mariadbd", 60)
        lines = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.run_folder}/munge.socket",
            "DbdHost": "localhost",
            "DbdAddr": "127.0.0.1",
            "DbdPort": str(self.port),
            "SlurmUser": "root",
            "PidFile": f"{self.folder}/slurmdbd.pid",
            "LogFile": f"{self.folder}/slurmdbd.log",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "localhost",
            "StorageUser": "root",
            "StorageLoc": "slurm_acct",
        }
        config = self.folder / "slurmdbd.conf"
        config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        config.chmod(0o600)
        (ETC / "slurmdbd.conf").unlink(missing_ok=True)
        (ETC / "slurmdbd.conf").symlink_to(config)
        self.environment["MYSQL_UNIX_PORT"] = str(socket)
        super()._start()

    def _after_munge(self) -> None:
        self._run("slurmdbd", "-D")
        self.wait(lambda: "test" in self._clusters(), "slurmdbd", 60)

    def _clusters(self) -> str:
        subprocess.run(["sacctmgr", "-i", "add", "cluster", "test"], capture_output=True, timeout=30)
        return _output("sacctmgr", "-n", "-P", "show", "cluster")


@pytest.fixture
def cluster() -> Iterator[AccountedCluster]:
    nodes = [Nodes(cpus=4, memory_mb=16_000)]
    with AccountedCluster(
        nodes=nodes, partitions=[Partition("gpu", ("n",), default=True), Partition("cpu", ("n",))]
    ) as running:
        yield running


def test_the_profile_works_where_accounts_are_kept(cluster: AccountedCluster, tmp_path: Path) -> None:
    run = Run(tmp_path, {"once": {"need": {"stage": "cost"}, "command": "echo once"}})
    try:
        assert run.wait() == 0, run.text()[-4000:]
    finally:
        run.stop()
    assert run.output("once") == "once\n"
    (job,) = cluster.by_comment("^rule_work_wildcards_once$")
    line = f"{job['JobId']}|COMPLETED|{job['Account']}"
    cluster.wait(
        lambda: line in _output("sacct", "-n", "-X", "-P", "-o", "JobID,State,Account").splitlines(), "the account", 30
    )
