#!/usr/bin/env bash
# A base image from Debian's packages, for sites that reach a Debian mirror and a package index but no image registry.
#
#   sudo deploy/images/base.sh NAME        then: export VCLLM_BASE=NAME, for docker compose build
#
# Needs debootstrap. MIRROR says where the packages are. The certificates this machine trusts and the folders of wheels
# that pip looks into here (PIP_FIND_LINKS) go in as well, so that builds in it reach what this machine reaches.
set -euo pipefail

name=${1:?say what the image is to be called}
root=$(mktemp --directory)
trap 'rm -rf "$root"' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
    bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}" >&2
rm -f "$root"/var/cache/apt/archives/*.deb

certificates=/etc/ssl/certs/ca-certificates.crt
if [[ -f $certificates ]]; then
    cp "$certificates" "$root$certificates"
fi
wheels=
for folder in ${PIP_FIND_LINKS:-}; do
    if [[ -d $folder ]]; then
        mkdir -p "$root$folder"
        cp --recursive "$folder/." "$root$folder"
        wheels+=" $folder"
    fi
done
printf '[global]\ncert = %s\nfind-links =%s\n' "$certificates" "$wheels" > "$root/etc/pip.conf"

tar --directory "$root" --create . | docker import --change 'CMD ["bash"]' - "$name" >&2
