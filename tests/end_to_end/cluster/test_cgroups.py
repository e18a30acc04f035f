"""Where a node's cgroups are, on hosts with cgroups v1 and on hosts with v2 only. These tests need no cluster."""

from pathlib import Path

from tests.end_to_end.cluster.node import own_cgroups

V1 = """\
25 1 0:22 / / rw - ext4 /dev/vda rw
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 /pods /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 25 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "34 25 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_node_cgroups_of_version_1_are_below_the_cgroups_of_the_process() -> None:
    memberships = "4:name=systemd:/user\n3:memory:/pods/mine\n2:cpu,cpuacct:/\n0::/unused\n"
    assert list(own_cgroups(V1, memberships)) == [
        Path("/sys/fs/cgroup/systemd/user"),
        Path("/sys/fs/cgroup/memory/mine"),
        Path("/sys/fs/cgroup/cpu,cpuacct"),
    ]


def test_node_cgroup_of_version_2_is_below_the_root_of_the_hierarchy() -> None:
    assert list(own_cgroups(V2, "0::/user.slice/session-1.scope\n")) == [Path("/sys/fs/cgroup")]
