#!/bin/sh
# Runs a command in a private, writable copy of a tree: private.sh TREE STATE BINDS COMMAND...
# Under `unshare --mount --pid`: no mount is visible outside, and all mounts are removed with the first process. Each
# line of BINDS has a path of the host, a tab, and the path at which it appears.
set -eu
tree=$1 state=$2 binds=$3 root=$2/root
shift 3
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$state/upper,workdir=$state/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
printf '%s\n' "$binds" | while IFS='	' read -r from to; do
    if [ -d "$from" ]; then mkdir -p "$root$to"; else mkdir -p "$root${to%/*}" && : >>"$root$to"; fi
    mount --bind "$from" "$root$to"
done
cd "$root"
pivot_root . mnt
exec chroot . /bin/sh -c 'umount -l /mnt && mount --make-rshared / && exec "$@"' sh "$@"
