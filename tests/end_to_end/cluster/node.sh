#!/bin/sh
# The first process of a node, in namespaces of its own: node.sh ADDRESS
set -eu
address=$1
export PATH=/programs:/usr/sbin:/usr/bin:/sbin:/bin
hostname node
mkdir /var/lib/containerd
mount --bind /state/containerd /var/lib/containerd

# The kubelet requires these kernel settings, which belong to the host: it reads these values, and so changes none.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=/run/settings/${setting%=*}
    mkdir -p "${file%/*}"
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done

# The cgroup namespace shows the node's cgroup as the root of each hierarchy.
if [ "$(cat /proc/self/cgroup)" = 0::/init ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    for each in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$each" >/sys/fs/cgroup/cgroup.subtree_control; done
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    cut -d: -f2 /proc/self/cgroup | grep . | while read -r controllers; do
        at=/sys/fs/cgroup/${controllers#name=}
        mkdir "$at"
        case $controllers in name=*) controllers=none,$controllers ;; esac
        mount -t cgroup -o "$controllers" cgroup "$at"
    done
fi

# A veth pair, since not every kernel has dummy devices. It has the node's address.
ip link set lo up
ip link add node0 type veth peer name node1
ip link set node1 up
ip link set node0 up
ip address add "$address/24" dev node0
ip route add default dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables

keep() {
    name=$1
    shift
    while :; do
        "$@" >>"/var/log/$name.log" 2>&1 || :
        sleep 1
    done &
}
pki=/etc/kubernetes
keep etcd etcd --data-dir=/var/lib/etcd --unsafe-no-fsync=true --log-level=warn
keep containerd containerd --config=/etc/containerd/node.toml
keep kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$address" \
    --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file=$pki/ca.crt --tls-cert-file=$pki/server.crt --tls-private-key-file=$pki/server.key \
    --kubelet-client-certificate=$pki/admin.crt --kubelet-client-key=$pki/admin.key \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=$pki/tokens.key \
    --service-account-signing-key-file=$pki/tokens.key
keep kube-controller-manager kube-controller-manager --kubeconfig=$pki/kube-controller-manager.conf \
    --leader-elect=false --use-service-account-credentials=true --root-ca-file=$pki/ca.crt \
    --service-account-private-key-file=$pki/tokens.key
keep kube-scheduler kube-scheduler --kubeconfig=$pki/kube-scheduler.conf --leader-elect=false
keep kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=$pki/kubelet.conf --node-ip="$address" \
    --hostname-override=node
keep kube-proxy kube-proxy --kubeconfig=$pki/kube-proxy.conf --hostname-override=node --proxy-mode=iptables \
    --cluster-cidr=10.244.0.0/16 --oom-score-adj=0 --conntrack-max-per-core=0 \
    --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s
# Enforces network policies with ipset, which not every kernel supports.
! ipset list >/dev/null 2>&1 || keep kube-router kube-router --kubeconfig=$pki/admin.conf --hostname-override=node \
    --run-router=false --run-service-proxy=false --service-cluster-ip-range=10.96.0.0/16
keep coredns coredns -conf /etc/coredns/Corefile
while :; do
    wait || :
done
