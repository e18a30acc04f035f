#!/bin/sh
# Builds images, and writes them into an archive: images.sh ARCHIVE VERSION "NAME TARGET CONTEXT"...
# The archive also contains the image of the pause container, which each pod has.
set -eu
archive=$1 version=$2
shift 2
export HOME=/root STORAGE_DRIVER=overlay BUILDAH_ISOLATION=chroot
mkdir -p /var/lib/containers && mount --bind /images/containers /var/lib/containers
options="--volume /etc/ssl/certs:/etc/ssl/certs:ro"
[ ! -e /etc/pip.conf ] || options="$options --volume /etc/pip.conf:/etc/pip.conf:ro"
push() { buildah push --quiet "$1" "oci:/tmp/layout:docker.io/library/$1"; }

# The base image is built again if its archive has changed.
base=base:$(stat -c %i-%Y /base.tar)
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    container=$(buildah from scratch)
    buildah add --quiet "$container" /base.tar /
    buildah commit --quiet "$container" "$base"
    buildah config --entrypoint '["/bin/sleep","infinity"]' --user 65535 "$container"
    buildah commit --quiet --rm "$container" pause:1
fi
push pause:1
printf '%s\n' "$@" | while read -r name target context; do
    [ "$target" = - ] && target= || target="--target $target"
    # shellcheck disable=SC2086
    buildah build --quiet --layers --from "$base" $target $options --build-arg "VERSION=$version" \
        --tag "$name:$version" "$context" </dev/null
    push "$name:$version"
done
tar -cf "$archive" -C /tmp/layout .
