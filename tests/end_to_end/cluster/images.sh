#!/bin/sh
# Builds images into the OCI layout /images/layout: images.sh VERSION "NAME TARGET CONTEXT"...
set -eu
version=$1
shift
export HOME=/root STORAGE_DRIVER=overlay BUILDAH_ISOLATION=chroot
mkdir -p /var/lib/containers && mount --bind /images/containers /var/lib/containers
options="--volume /etc/ssl/certs:/etc/ssl/certs:ro"
[ ! -e /etc/pip.conf ] || options="$options --volume /etc/pip.conf:/etc/pip.conf:ro"

# The base image is built again if its archive has changed.
base=base:$(stat -c %i-%Y /base.tar)
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    container=$(buildah from scratch)
    buildah add --quiet "$container" /base.tar /
    buildah commit --quiet "$container" "$base"
    buildah config --entrypoint '["/bin/sleep","infinity"]' --user 65535 "$container"
    buildah commit --quiet --rm "$container" pause:1
fi
buildah push --quiet pause:1 oci:/images/layout:pause:1
printf '%s\n' "$@" | while read -r name target context; do
    [ "$target" = - ] && target= || target="--target $target"
    # shellcheck disable=SC2086
    buildah build --quiet --layers --from "$base" $target $options --build-arg "VERSION=$version" \
        --tag "$name:$version" "$context" </dev/null
    buildah push --quiet "$name:$version" "oci:/images/layout:$name:$version"
done
