#!/usr/bin/env bash
# Base images under their public names, for machines that reach Debian's packages and no registry of images, and the
# folder to build from with vendored crates. Used by docker/test.sh; needs root.
#   docker/stand-ins.sh runtime|build FOLDER     makes the image, working in FOLDER
#   docker/stand-ins.sh context FOLDER           makes the context of a build without network
# A stand-in has the label trefoil.stand-in.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=bookworm
runtime=$(sed -n 's/^FROM \([^ ]*\)$/\1/p' docker/Dockerfile)
build=$(sed -n 's/^FROM \([^ ]*\) AS build$/\1/p' docker/Dockerfile)

need() {
  command -v "$1" >/dev/null || { apt-get update -qq && apt-get install -y -qq "$1" >/dev/null; }
}

import() {
  tar --numeric-owner -C "$1" -c . | docker import --change 'LABEL trefoil.stand-in=true' "${@:3}" - "$2" >/dev/null
  echo "stand-in: $2"
}

# What distroless/cc has that a node uses: libc, libgcc, the user database.
make_runtime() {
  local root=$1/runtime
  need debootstrap
  debootstrap --foreign --variant=minbase "$SUITE" "$1/debs" >"$1/runtime.log"
  mkdir -p "$root"/{etc,tmp,var/lib}
  for package in base-files libc6 libgcc-s1; do
    dpkg-deb -x "$1"/debs/var/cache/apt/archives/"${package}"_*.deb "$root"
  done
  chmod 1777 "$root/tmp"
  printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"
  import "$root" "$runtime"
}

# The official image: Debian with a C compiler, and the toolchain of this machine.
make_build() {
  local root=$1/build toolchain
  need debootstrap
  debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates "$SUITE" "$root" >"$1/build.log"
  toolchain=$(rustc --print sysroot)
  mkdir -p "$root/usr/local/cargo"
  cp -a "$toolchain/bin" "$toolchain/lib" "$root/usr/local/cargo/"
  import "$root" "$build" --change 'ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV CARGO_HOME=/usr/local/cargo'
}

make_context() {
  mkdir -p "$1/context/.cargo"
  git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$1/context"
  (cd "$1/context" && cargo vendor --locked vendor >.cargo/config.toml 2>../vendor.log)
}

mkdir -p "$2"
case $1 in
  runtime) make_runtime "$2" ;;
  build) make_build "$2" ;;
  context) make_context "$2" ;;
  *) echo "docker/stand-ins.sh: no such thing: $1" >&2; exit 64 ;;
esac
