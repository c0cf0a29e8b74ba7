"""What a task in a container tries and does not get; each attempt is one of a real container at a real engine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from p2pcompute.execution.container.engine import EngineInfo
from p2pcompute.execution.container.holding import Allowance, container_document
from p2pcompute.execution.container.program import ContainerProgram, ContainerTask
from p2pcompute.execution.sandbox.grants import GrantedFolder
from p2pcompute.model.engine import Demands, Engine
from tests.unit.execution.container.conftest import MakeBench

pytestmark = pytest.mark.timeout(60)

#: Each line does something that must not work and says so if it did.
_ATTEMPTS = """
touch /etc/x 2>/dev/null && echo ESCAPED wrote the image
touch /x 2>/dev/null && echo ESCAPED wrote the root
touch /proc/sys/kernel/core_pattern 2>/dev/null && echo x > /proc/sys/kernel/core_pattern && echo ESCAPED wrote the kernel
echo 1 2>/dev/null > /proc/sysrq-trigger && echo ESCAPED sysrq
mount -t tmpfs x /tmp 2>/dev/null && echo ESCAPED mounted
mount -o remount,rw / 2>/dev/null && echo ESCAPED remounted
umount /proc 2>/dev/null && echo ESCAPED unmounted
mknod /work/disk b 254 0 2>/dev/null && echo ESCAPED made a device
mknod /tmp/disk c 1 1 2>/dev/null && echo ESCAPED made a device in tmp
chmod 4755 /work/sh 2>/dev/null
ls /var/run/docker.sock /run/docker.sock 2>/dev/null && echo ESCAPED the engine is here
for dir in /proc/[0-9]*; do grep=$(cat $dir/comm 2>/dev/null); [ "$grep" = dockerd ] && echo ESCAPED sees the host; done
kill -9 "$HOSTPID" 2>/dev/null && echo ESCAPED killed a process of the host
cat /proc/1/root/etc/shadow 2>/dev/null && echo ESCAPED read shadow
head -c 1 /dev/mem 2>/dev/null && echo ESCAPED read memory
head -c 1 /dev/vda /dev/sda 2>/dev/null && echo ESCAPED read a disk
head -c 1 /proc/kcore 2>/dev/null && echo ESCAPED read the kernel
cat "$SECRET" 2>/dev/null && echo ESCAPED read the host
wget -q -T 1 -O - "http://127.0.0.1:$PORT/" 2>/dev/null && echo ESCAPED network
nc -w 1 127.0.0.1 "$PORT" 2>/dev/null </dev/null && echo ESCAPED loopback of the host
echo done
"""


async def test_nothing_of_the_machine_is_reached(containers: MakeBench, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {"SECRET": str(secret), "PORT": str(server.getsockname()[1]), "HOSTPID": str(os.getpid())}
        async with containers() as bench:
            result = await bench.shell(_ATTEMPTS, environment=tuple(environment.items()))
            assert result.stdout == b"done\n", result.stdout.decode()


async def test_a_task_has_no_rights_no_network_and_only_its_own_processes(containers: MakeBench) -> None:
    async with containers() as bench:
        script = (
            "id -u; cat /proc/self/status | while read -r name value rest; do case $name in CapEff:|CapBnd:|NoNewPrivs:|Seccomp:) echo $name $value;; esac; done;"
            "ls /sys/class/net; for each in /proc/[0-9]*; do echo ${each#/proc/}; done | sort -n 2>/dev/null | head -n 1; cat /proc/mounts"
        )
        lines = (await bench.shell(script, checks=False)).stdout.decode().splitlines()
        assert lines[0] != "0"
        assert lines[1:5] == ["CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"]
        assert "lo" in lines
        assert not any(line.startswith(("eth", "docker", "br-", "en")) for line in lines)
        mounts = {line.split()[1]: line.split() for line in lines if len(line.split()) == 6}
        assert mounts["/"][3].split(",")[0] == "ro"
        assert mounts["/work"][3].split(",")[0] == "rw"
        assert not any("docker.sock" in place for place in mounts)


_INFO = EngineInfo("dockerd", "1", False, (), True, 1 << 30)


def _document(*grants: str, **fields: object) -> dict[str, object]:
    program = ContainerProgram(1, Engine.CONTAINER, "alpine", demands=Demands(grants=grants), **fields)  # type: ignore[arg-type]
    folders = (GrantedFolder("data", Path("/srv/data"), True), GrantedFolder("other", Path("/srv/other"), False))
    return container_document(
        program, ContainerTask(), image="sha256:1", command=["true"], allowance=Allowance(64 << 20), folder=Path("/scratch/1"),
        instance="i", name="1.0", info=_INFO, folders=folders,
    )["HostConfig"]  # type: ignore[no-any-return]  # fmt: skip


def _targets(host: dict[str, object]) -> dict[str, bool]:
    mounts = host["Mounts"]
    assert isinstance(mounts, list)
    return {mount["Target"]: mount["ReadOnly"] for mount in mounts}


def test_each_grant_gives_exactly_what_it_says() -> None:
    bare = _document()
    assert bare["NetworkMode"] == "none"
    assert "DeviceRequests" not in bare
    assert _targets(bare) == {"/work": False}
    assert _document("network")["NetworkMode"] == "default"
    assert _document("gpu")["DeviceRequests"] == [{"Count": -1, "Capabilities": [["gpu"]]}]
    assert _targets(_document("folder:data")) == {"/work": False, "/folders/data": True}
    assert _targets(_document("folder:data:rw")) == {"/work": False, "/folders/data": False}
    # Demanded for writing where the owner lets it be read: the lender refuses the program; here it is not even mounted.
    assert _targets(_document("folder:other:rw")) == {"/work": False}


def test_wishes_only_ever_lower_what_the_owner_allows() -> None:
    owner = Allowance(64 << 20, cpus=1.0, processes=32, scratch_bytes=1 << 20)
    greedy = ContainerProgram(
        1, Engine.CONTAINER, "alpine", memory_bytes=1 << 40, cpus=64.0, processes=1 << 20, scratch_bytes=1 << 50
    )
    assert owner.for_program(greedy, 1 << 45) == owner
    modest = ContainerProgram(
        1, Engine.CONTAINER, "alpine", memory_bytes=8 << 20, cpus=0.5, processes=4, scratch_bytes=10
    )
    assert owner.for_program(modest, None) == Allowance(8 << 20, 0.5, 4, 10, owner.tmp_bytes)
